"""Run a Tune trial that trains a batch of fusion candidates on cached embeddings."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from ray import tune

from eav_ray.config import Experiment
from eav_ray.data.shards.dataset import Dataset
from eav_ray.distributed import cluster
from eav_ray.pipelines.search.candidate_summary import FoldScores, summarize_candidate
from eav_ray.pipelines.search.search_plan import InnerCV, plan_candidate_runs
from eav_ray.training.prepared_run import WorkerContext, open_worker_context
from eav_ray.training.run_spec import SELECTION_METRIC, Run
from eav_ray.training.runner import train_and_score_split
from eav_ray.tuning.batched_fusion import score_fusions, unbatchable_reason
from eav_ray.tuning.pruning import PruningSchedule, compute_folds_done, compute_mean
from eav_ray.tuning.search_space import apply_candidate


def run_fusion_batch(config: dict[str, Any], experiment: Experiment, inner_cv: InnerCV, data: Dataset) -> None:
    """Score some candidates over their inner folds; reports a few at a time."""
    device = cluster.set_up_torch(experiment.runtime)
    context = open_worker_context(experiment, data, device, inner_cv.embedded_recordings)
    candidates = {number: apply_candidate(experiment, changes) for number, changes in config["candidates"]}
    pruning_thresholds, folds = dict(config["pruning_thresholds"]), range(len(inner_cv.splits))
    fold_scores: dict[int, list[FoldScores]] = {number: [] for number in candidates}
    # Without a bar all folds are trained at once.
    for part in [[fold] for fold in folds] if pruning_thresholds else [list(folds)]:
        jobs = [(number, fold) for number in fold_scores for fold in part]
        splits = [inner_cv.splits[fold] for fold in part]
        planned = [plan_candidate_runs(candidates[n], replace(inner_cv, splits=splits)) for n in fold_scores]
        runs = [fold_runs[-1] for folds_runs in planned for fold_runs in folds_runs]
        reasons = [unbatchable_reason(run) for run in runs]
        unbatchable = {number: reason for (number, _), reason in zip(jobs, reasons, strict=True)}

        def keeps_training(run: int, rung: float, score: float, jobs: list[tuple[int, int]] = jobs) -> bool:
            """Whether a candidate goes on in this fold; without a number there is nothing to go on with."""
            number, fold = jobs[run]
            mean = (
                compute_mean([*(f[SELECTION_METRIC] for f in fold_scores[number][:fold]), score])
                if pruning_thresholds
                else 1.0
            )
            return math.isfinite(score) and mean >= pruning_thresholds.get(compute_folds_done(fold, rung), -math.inf)

        started = time.perf_counter()
        pruning_schedule = PruningSchedule(experiment.search.rungs, keeps_training)
        for numbers, metrics in _score_runs(
            runs, reasons, context, experiment.search.fusion_batch_size, pruning_schedule
        ):
            seconds = (time.perf_counter() - started) / len(numbers)
            for n, scored in zip(numbers, metrics, strict=True):
                number, fold = jobs[n]
                fold_scores[number].append({"fold": fold, "seconds": seconds, "stack_size": len(numbers)} | scored)
            finished = [
                summarize_candidate(n, f, len(folds), pruning_thresholds, unbatchable_reason=unbatchable[n])
                for n, f in fold_scores.items()
                if len(f) > part[-1]
            ]
            finished = [candidate for candidate in finished if candidate]
            if finished:
                tune.report({SELECTION_METRIC: finished[0][SELECTION_METRIC], "summaries": json.dumps(finished)})
            for candidate in finished:
                del fold_scores[candidate["candidate"]]
            started = time.perf_counter()


def _score_runs(
    runs: list[Run],
    reasons: list[str],
    context: WorkerContext,
    fusion_batch_size: int,
    pruning_schedule: PruningSchedule,
) -> Iterator[tuple[list[int], list[dict[str, float]]]]:
    """Numbers of runs and their scores, as they come."""
    batched = [n for n, reason in enumerate(reasons) if not reason]
    batch_schedule = replace(
        pruning_schedule, keeps_training=lambda n, look, score: pruning_schedule.keeps_training(batched[n], look, score)
    )
    for numbers, metrics in score_fusions(
        [runs[n] for n in batched], context, fusion_batch_size=fusion_batch_size, pruning_schedule=batch_schedule
    ):
        yield [batched[n] for n in numbers], metrics
    for n in (n for n, reason in enumerate(reasons) if reason):
        try:
            metrics = train_and_score_split(runs[n], context)
        except torch.cuda.OutOfMemoryError:
            metrics = {SELECTION_METRIC: float("nan")}  # the candidate's own fault: it fails, and the search goes on
        yield [n], [metrics]

"""What a Tune trial of a search does: train a lease of candidates on the inner folds, and tell their scores.

Told is a mean over the folds, with a row for each fold.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from ray import tune

from eav_ray.config import Experiment, override
from eav_ray.data.shard import ShardIndex
from eav_ray.data.split import Split
from eav_ray.errors import ConfigError, DataError, TrainingInterrupted
from eav_ray.runtime import cluster
from eav_ray.runtime.groups import train_runs
from eav_ray.runtime.queue import QueueState
from eav_ray.runtime.score import ScoringTask, score_checkpoints
from eav_ray.runtime.train import plan_runs
from eav_ray.search.heads import PruningSchedule, score_fusions, unbatchable_reason
from eav_ray.search.study import compute_folds_done, compute_mean
from eav_ray.storage import Store
from eav_ray.training.metrics import compute_scores
from eav_ray.training.plan import SELECTION_METRIC, Run, plan_fusion_run
from eav_ray.training.run import WorkerContext, open_worker_context, train_and_score_split

FoldScores = dict[str, Any]  # what is known of a candidate on one fold: a row
STUDY_FILE = "search.json"  # beside a run's attempts: the study whose candidate began it
UNFINISHED_RESULT = {SELECTION_METRIC: math.nan}  # of a candidate that has saved and left: it stays open in the study
CANDIDATE_COLUMNS = ("study", "candidate", "state", "changes")  # columns of a row that are not of its fold


@dataclass(frozen=True)
class InnerCV:
    """What every candidate of a search is scored on."""

    splits: list[Split]
    data_digest: str  # digest of the shards' content
    embedded_recordings: tuple[str, ...]  # recordings that the search may see at all


# Fusions on embeddings


def run_fusion_batch(
    config: dict[str, Any], experiment: Experiment, inner_cv: InnerCV, shards: str, index: ShardIndex
) -> None:
    """Some candidates over their inner folds; told a few at a time."""
    torch.set_num_threads(max(1, int(experiment.runtime.cpus_per_worker)))
    device = torch.device("cuda" if cluster.has_gpu(experiment.runtime) else "cpu")
    context = open_worker_context(
        experiment, Store(shards), index, device, allowed_recordings=inner_cv.embedded_recordings
    )
    candidates = {number: override(experiment, changes) for number, changes in config["candidates"]}
    pruning_thresholds, folds = dict(config["bars"]), range(len(inner_cv.splits))
    fold_scores: dict[int, list[FoldScores]] = {number: [] for number in candidates}
    # Without a bar all folds are trained at once.
    for part in [[fold] for fold in folds] if pruning_thresholds else [list(folds)]:
        jobs = [(number, fold) for number in fold_scores for fold in part]
        runs = [
            plan_fusion_run(candidates[n], inner_cv.splits[fold], inner_cv.data_digest, inner_cv.embedded_recordings)
            for n, fold in jobs
        ]
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
                fold_scores[number].append({"fold": fold, "seconds": seconds, "together": len(numbers)} | scored)
            finished = [
                summarize_candidate(n, f, len(folds), pruning_thresholds, unbatchable_reason=unbatchable[n])
                for n, f in fold_scores.items()
                if len(f) > part[-1]
            ]
            finished = [candidate for candidate in finished if candidate]
            if finished:
                tune.report({SELECTION_METRIC: finished[0][SELECTION_METRIC], "scored": json.dumps(finished)})
            for candidate in finished:
                del fold_scores[candidate["candidate"]]
            started = time.perf_counter()


def summarize_candidate(
    number: int,
    fold_scores: list[FoldScores],
    folds: int,
    pruning_thresholds: dict[float, float],
    *,
    unbatchable_reason: str = "",
    failed: str = "",
) -> dict[str, Any]:
    """A candidate that has its last fold behind it, or a mean below the bar, or has failed; empty for any other."""
    ordered = sorted(fold_scores, key=lambda fold: fold["fold"])
    mean = compute_mean([fold[SELECTION_METRIC] for fold in ordered]) if ordered else math.nan
    n_completed = sum(fold.get("share", 1.0) == 1 for fold in ordered)
    folds_done = compute_folds_done(n_completed, ordered[-1].get("share", 0.0) if n_completed < len(ordered) else 0.0)
    pruned = n_completed < folds and mean < pruning_thresholds.get(folds_done, -math.inf)
    if n_completed < folds and not pruned and math.isfinite(mean) and not failed:
        return {}
    summary = {
        "candidate": number,
        SELECTION_METRIC: mean,
        "folds": ordered,
        "alone": unbatchable_reason,
        "pruned": pruned,
    }
    return summary | ({"failed": failed} if failed else {})


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


# Everything trained


class StopSignal:
    """An actor beside the search's driver, by which it speaks with the drivers of candidates (`full`)."""

    def __init__(self) -> None:
        self._stopped = False
        self._progress: dict[int, tuple[float, str]] = {}

    def stop(self) -> None:
        self._stopped = True

    def report_progress(self, number: int, fraction: float, note: str) -> bool:
        """How much of a candidate is trained, 0 to 1; whether its driver should save and leave."""
        self._progress[number] = fraction, note
        return self._stopped

    def get_progress(self) -> dict[int, tuple[float, str]]:
        return self._progress


def plan_candidate_runs(experiment: Experiment, inner_cv: InnerCV) -> list[list[Run]]:
    """What one candidate trains on each inner fold; the last run of each is scored."""
    return [
        plan_runs(experiment, split, inner_cv.data_digest, embedded_recordings=inner_cv.embedded_recordings)
        for split in inner_cv.splits
    ]


def run_end_to_end_candidate(
    config: dict[str, Any],
    experiment: Experiment,
    inner_cv: InnerCV,
    shards: str,
    index: ShardIndex,
    study_name: str,
    stop_signal: Any,
) -> None:
    """The driver of one candidate: a group of workers trains it on one inner fold after the other.

    Raises:
        DataError: Something that is not the candidate's fault; it stays open in the study.
    """
    ((number, changes),) = config["candidates"]
    e = override(experiment, changes)
    e = replace(e, runtime=replace(e.runtime, groups=1))
    results, pruning_thresholds = Store(e.store.results), dict(config["bars"])
    known_folds = {row["fold"]: row for row in config["known"]}
    runs = plan_candidate_runs(e, inner_cv)
    fold_scores: dict[int, FoldScores] = {}  # in the order of the folds
    state = QueueState({}, {}, 0.0, "", False, ())
    pruned_at, stop_requested, last_update = 0.0, False, time.monotonic()

    def is_pruned() -> bool:
        """Whether the folds so far are enough to leave this candidate."""
        if not fold_scores or len(fold_scores) == len(runs):
            return False
        mean = compute_mean([fold[SELECTION_METRIC] for fold in fold_scores.values()])
        return not math.isfinite(mean) or mean < pruning_thresholds.get(compute_folds_done(len(fold_scores)), -math.inf)

    def update_progress(now: QueueState) -> bool:
        nonlocal state, last_update, stop_requested, pruned_at
        state = now
        while len(fold_scores) < len(runs) and not is_pruned():
            fold = len(fold_scores)
            if fold in known_folds:
                fold_scores[fold] = {k: v for k, v in known_folds[fold].items() if k not in CANDIDATE_COLUMNS}
                continue
            key = runs[fold][-1].key
            metrics = (
                _read_validation_metrics(results, state.done[key], inner_cv.splits[fold]) if key in state.done else {}
            )
            if not metrics:
                break
            fold_scores[fold] = {"fold": fold, "seconds": time.monotonic() - last_update, "together": 1} | metrics
            last_update = time.monotonic()
        if is_pruned() and not pruned_at:
            pruned_at = time.monotonic()
        fraction = state.epochs_done / sum(run.epochs for run in {r.key: r for fold in runs for r in fold}.values())
        stop_requested = ray.get(stop_signal.tell.remote(number, min(1.0, fraction), state.note))
        return bool(stop_requested or pruned_at or state.failed)

    failed = ""
    todo = [run for fold, fold_runs in enumerate(runs) if fold not in known_folds for run in fold_runs]
    if not update_progress(state) and todo:
        for run in todo:
            if not results.list_files(f"runs/{run.key}"):
                results.write_json(f"runs/{run.key}/{STUDY_FILE}", study_name)
        try:
            update_progress(
                train_runs(
                    e,
                    todo,
                    Store(shards),
                    index,
                    inner_cv.embedded_recordings,
                    title=f"candidate {number}",
                    should_stop=update_progress,
                )
            )
        except TrainingInterrupted:
            pass  # by `look`, or another way that the job was told to end
        except ConfigError as error:
            failed = str(error)
    if not pruned_at:
        for key, reason in state.failed.items():
            if key not in state.permanent_failures:
                raise DataError(f"{key}: {reason}")
            failed = failed or f"{key}: {reason}"
    for fold in range(len(fold_scores), len(runs)) if not pruned_at and not failed else ():
        # Equal training rows were trained before, and judged by other rows than those of this fold.
        key = runs[fold][-1].key
        if key not in state.done:
            return tune.report(UNFINISHED_RESULT)
        started = time.monotonic()
        task = ScoringTask(f"{results}/{state.done[key]}", inner_cv.splits[fold].validation)
        (table,) = score_checkpoints(e, [task], Store(shards), index)
        if isinstance(table, str):
            raise DataError(table)
        fold_scores[fold] = {"fold": fold, "seconds": time.monotonic() - started, "together": 1}
        fold_scores[fold] |= {f"validation_{name}": value for name, value in compute_scores(table).items()}
    rows = list(fold_scores.values())
    if failed:
        rows += [{"fold": len(rows), "seconds": math.nan, "together": 1, SELECTION_METRIC: math.nan}]
    if pruned_at:
        rows[-1]["released_s"] = time.monotonic() - pruned_at  # until its workers' CPUs and GPUs were free again
    summary = summarize_candidate(number, rows, len(runs), pruning_thresholds, failed=failed)
    tune.report(
        {SELECTION_METRIC: summary[SELECTION_METRIC], "scored": json.dumps([summary])} if summary else UNFINISHED_RESULT
    )


def _read_validation_metrics(results: Store, prefix: str, split: Split) -> dict[str, float]:
    """What the training itself measured on the validation rows of this split; empty if it was of another."""
    trained_split = results.read_json(f"{prefix}/split.json")
    if sorted(trained_split["validation"]) != sorted(split.validation):
        return {}
    metrics = results.read_json(f"{prefix}/metrics.json")
    return (
        {name: value for name, value in metrics.items() if name.startswith("validation_")}
        if SELECTION_METRIC in metrics
        else {}
    )

"""What a Tune trial of a search does: train its candidates on the inner folds, and report their scores.

Reported is a mean over the folds, with a row for each fold.
"""

import json
import math
import time
from dataclasses import replace
from typing import Any

import ray
from ray import tune

from eav_ray.config import Experiment, override
from eav_ray.data.shards.index import ShardIndex
from eav_ray.data.splits import Split
from eav_ray.distributed.run_queue import QueueState
from eav_ray.distributed.scoring import ScoringTask, score_checkpoints
from eav_ray.distributed.worker_groups import train_runs
from eav_ray.errors import ConfigError, DataError, TrainingInterrupted
from eav_ray.pipelines.search.candidate_summary import CANDIDATE_COLUMNS, FoldScores, summarize_candidate
from eav_ray.pipelines.search.search_plan import InnerCV, plan_candidate_runs
from eav_ray.storage import Store
from eav_ray.training.metrics import compute_scores
from eav_ray.training.run_spec import SELECTION_METRIC
from eav_ray.tuning.pruning import compute_folds_done, compute_mean

STUDY_FILE = "search.json"  # beside a run's attempts: the study whose candidate began it


UNFINISHED_RESULT = {SELECTION_METRIC: math.nan}  # of a candidate that has saved and left: it stays open in the study


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
    results, pruning_thresholds = Store(e.store.results), dict(config["pruning_thresholds"])
    known_folds = {row["fold"]: row for row in config["known_rows"]}
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
            fold_scores[fold] = {"fold": fold, "seconds": time.monotonic() - last_update, "stack_size": 1} | metrics
            last_update = time.monotonic()
        if is_pruned() and not pruned_at:
            pruned_at = time.monotonic()
        fraction = state.epochs_done / sum(run.epochs for run in {r.key: r for fold in runs for r in fold}.values())
        stop_requested = ray.get(stop_signal.report_progress.remote(number, min(1.0, fraction), state.note))
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
            pass  # by `report_intermediate`, or another way that the job was asked to end
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
        fold_scores[fold] = {"fold": fold, "seconds": time.monotonic() - started, "stack_size": 1}
        fold_scores[fold] |= {f"validation_{name}": value for name, value in compute_scores(table).items()}
    rows = list(fold_scores.values())
    if failed:
        rows += [{"fold": len(rows), "seconds": math.nan, "stack_size": 1, SELECTION_METRIC: math.nan}]
    if pruned_at:
        rows[-1]["released_s"] = time.monotonic() - pruned_at  # until its workers' CPUs and GPUs were free again
    summary = summarize_candidate(number, rows, len(runs), pruning_thresholds, failed=failed)
    tune.report(
        {SELECTION_METRIC: summary[SELECTION_METRIC], "summaries": json.dumps([summary])}
        if summary
        else UNFINISHED_RESULT
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

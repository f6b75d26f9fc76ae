"""Run a Tune trial of a search of whole trainings: one candidate on the inner folds."""

import json
import math
import time
from dataclasses import replace
from typing import Any

import ray
from ray import tune

from eav_ray.config import Experiment
from eav_ray.data.shards.dataset import Dataset
from eav_ray.data.splits import Split
from eav_ray.distributed.run_queue import QueueState
from eav_ray.distributed.scoring import ScoringTask, score_checkpoints
from eav_ray.distributed.worker_groups import train_runs
from eav_ray.errors import ConfigError, DataError, TrainingInterrupted
from eav_ray.pipelines.search.candidate_runs import mark_run
from eav_ray.pipelines.search.candidate_summary import CANDIDATE_COLUMNS, FoldScores, summarize_candidate
from eav_ray.pipelines.search.search_plan import InnerCV, plan_candidate_runs
from eav_ray.storage import Store
from eav_ray.training.checkpoint import OpenedCheckpoint
from eav_ray.training.metrics import compute_scores
from eav_ray.training.run_spec import SELECTION_METRIC
from eav_ray.tuning.pruning import compute_folds_done, compute_mean
from eav_ray.tuning.search_space import apply_candidate

UNFINISHED_RESULT = {SELECTION_METRIC: math.nan}  # of a candidate that has saved and left: it stays open in the study


class StopSignal:
    """An actor beside the search's driver, by which it speaks with the drivers of candidates (`full`)."""

    def __init__(self) -> None:
        self._stopped = False
        self._progress: dict[int, tuple[float, str]] = {}

    def stop(self) -> None:
        self._stopped = True

    def report_progress(self, number: int, fraction: float, note: str) -> bool:
        """Take how much of a candidate is trained, 0 to 1; returns whether its driver should save and leave."""
        self._progress[number] = fraction, note
        return self._stopped

    def get_progress(self) -> dict[int, tuple[float, str]]:
        return self._progress


def run_end_to_end_candidate(
    config: dict[str, Any], experiment: Experiment, inner_cv: InnerCV, data: Dataset, study_name: str, stop_signal: Any
) -> None:
    """Run the driver of one candidate, and report its mean over the folds, with a row for each fold.

    Raises:
        DataError: Something that is not the candidate's fault; it stays open in the study.
    """
    tune.report(EndToEndTrial(config, experiment, inner_cv, data, stop_signal).run(study_name))


class EndToEndTrial:
    """The driver of one candidate: a group of workers trains it on one inner fold after the other."""

    def __init__(
        self, config: dict[str, Any], experiment: Experiment, inner_cv: InnerCV, data: Dataset, stop_signal: Any
    ) -> None:
        ((self._number, changes),) = config["candidates"]
        e = apply_candidate(experiment, changes)
        self._experiment = replace(e, runtime=replace(e.runtime, groups=1))
        self._inner_cv, self._data, self._stop_signal = inner_cv, data, stop_signal
        self._results = Store(e.store.results)
        self._pruning_thresholds: dict[float, float] = dict(config["pruning_thresholds"])
        self._known_folds: dict[int, FoldScores] = {
            row["fold"]: {k: v for k, v in row.items() if k not in CANDIDATE_COLUMNS} for row in config["known_rows"]
        }
        self._runs = plan_candidate_runs(self._experiment, inner_cv)
        self._total_epochs = sum(run.epochs for run in {r.key: r for fold in self._runs for r in fold}.values())
        self._folds: list[FoldScores] = []  # in their order
        self._state = QueueState({}, {}, 0.0, "", False, ())
        self._pruned_at, self._last_scored_at = 0.0, time.monotonic()
        self._failed = ""

    def run(self, study_name: str) -> dict[str, Any]:
        """Train and score what is left; returns what Tune is to be told."""
        self._train(study_name)
        if not self._pruned_at:
            self._collect_failures()
        while not self._pruned_at and not self._failed and len(self._folds) < len(self._runs):
            if not self._score_next_fold():
                return UNFINISHED_RESULT
        return self._summarize()

    def _train(self, study_name: str) -> None:
        todo = [run for fold, runs in enumerate(self._runs) if fold not in self._known_folds for run in runs]
        if self._update(self._state) or not todo:
            return
        for run in todo:
            mark_run(self._results, run.key, study_name)
        title = f"candidate {self._number}"
        try:
            self._update(train_runs(self._experiment, todo, self._data, title=title, should_stop=self._update))
        except TrainingInterrupted:
            pass  # by `_update`, or another way that the job was told to end
        except ConfigError as error:
            self._failed = str(error)

    def _update(self, state: QueueState) -> bool:
        """Take the scores of folds that are finished; returns whether to save and leave."""
        self._state = state
        while len(self._folds) < len(self._runs) and not self._is_below_threshold():
            fold = len(self._folds)
            if fold in self._known_folds:
                self._folds.append(self._known_folds[fold])
                continue
            prefix = state.done.get(self._runs[fold][-1].key)
            metrics = prefix and _read_validation_metrics(self._results, prefix, self._inner_cv.splits[fold])
            if not metrics:
                break
            self._add_fold(metrics, self._last_scored_at)
            self._last_scored_at = time.monotonic()
        if self._is_below_threshold() and not self._pruned_at:
            self._pruned_at = time.monotonic()
        fraction = min(1.0, state.epochs_done / self._total_epochs)
        stop_requested = ray.get(self._stop_signal.report_progress.remote(self._number, fraction, state.note))
        return bool(stop_requested or self._pruned_at or state.failed)

    def _is_below_threshold(self) -> bool:
        """Whether the folds so far are enough to leave this candidate."""
        if not self._folds or len(self._folds) == len(self._runs):
            return False
        mean = compute_mean([fold[SELECTION_METRIC] for fold in self._folds])
        threshold = self._pruning_thresholds.get(compute_folds_done(len(self._folds)), -math.inf)
        return not math.isfinite(mean) or mean < threshold

    def _add_fold(self, metrics: dict[str, float], began: float) -> None:
        row = {"fold": len(self._folds), "seconds": time.monotonic() - began, "stack_size": 1}
        self._folds.append(row | metrics)

    def _collect_failures(self) -> None:
        for key, reason in self._state.failed.items():
            if key not in self._state.permanent_failures:
                raise DataError(f"{key}: {reason}")
            self._failed = self._failed or f"{key}: {reason}"

    def _score_next_fold(self) -> bool:
        """Score a fold whose training rows were trained before, and judged by other rows; False: it is not trained."""
        fold = len(self._folds)
        prefix = self._state.done.get(self._runs[fold][-1].key)
        if not prefix:
            return False
        began = time.monotonic()
        task = ScoringTask(OpenedCheckpoint(self._results, prefix), self._inner_cv.splits[fold].validation)
        (scored,) = score_checkpoints(self._experiment, [task], self._data)
        scores = compute_scores(scored.require())
        self._add_fold({f"validation_{name}": value for name, value in scores.items()}, began)
        return True

    def _summarize(self) -> dict[str, Any]:
        rows = list(self._folds)
        if self._failed:
            rows += [{"fold": len(rows), "seconds": math.nan, "stack_size": 1, SELECTION_METRIC: math.nan}]
        if self._pruned_at:
            # Until its workers' CPUs and GPUs were free again.
            rows[-1]["released_s"] = time.monotonic() - self._pruned_at
        summary = summarize_candidate(
            self._number, rows, len(self._runs), self._pruning_thresholds, failed=self._failed
        )
        if not summary:
            return UNFINISHED_RESULT
        return {SELECTION_METRIC: summary[SELECTION_METRIC], "summaries": json.dumps([summary])}


def _read_validation_metrics(results: Store, prefix: str, split: Split) -> dict[str, float]:
    """Read what the training measured on the validation rows of this split; empty if it was of another."""
    checkpoint = OpenedCheckpoint(results, prefix)
    if sorted(checkpoint.split.validation) != sorted(split.validation):
        return {}
    metrics = checkpoint.metrics
    if SELECTION_METRIC not in metrics:
        return {}
    return {name: value for name, value in metrics.items() if name.startswith("validation_")}

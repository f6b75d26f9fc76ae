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
from eav_ray.runtime.groups import run_each
from eav_ray.runtime.queue import State
from eav_ray.runtime.score import Task, score
from eav_ray.runtime.train import runs_of
from eav_ray.search.heads import PruningSchedule, score_heads, why_alone
from eav_ray.search.study import mean_of, reached
from eav_ray.storage import Store
from eav_ray.training.metrics import compute_scores
from eav_ray.training.plan import SELECTION_METRIC, Run, plan_fusion_run
from eav_ray.training.run import WorkerContext, open_worker_context, train_and_score_split

FoldScores = dict[str, Any]  # what is known of a candidate on one fold: a row
STUDY_FILE = "search.json"  # beside a run's attempts: the study whose candidate began it
NOTHING = {SELECTION_METRIC: math.nan}  # of a candidate that has saved and left: it stays open in the study
OF_CANDIDATE = ("study", "candidate", "state", "changes")  # columns of a row that are not of its fold


@dataclass(frozen=True)
class Question:
    """What every candidate of a search is scored on."""

    inner: list[Split]
    data: str  # digest of the shards' content
    embed: tuple[str, ...]  # recordings that the search may see at all


# Fusions on embeddings


def run_fusion_batch(
    config: dict[str, Any], experiment: Experiment, question: Question, shards: str, index: ShardIndex
) -> None:
    """Some candidates over their inner folds; told a few at a time."""
    torch.set_num_threads(max(1, int(experiment.runtime.cpus_per_worker)))
    device = torch.device("cuda" if cluster.has_gpu(experiment.runtime) else "cpu")
    context = open_worker_context(experiment, Store(shards), index, device, allowed_recordings=question.embed)
    candidates = {number: override(experiment, changes) for number, changes in config["candidates"]}
    pruning_thresholds, folds = dict(config["bars"]), range(len(question.inner))
    found: dict[int, list[FoldScores]] = {number: [] for number in candidates}
    # Without a bar all folds are trained at once.
    for part in [[fold] for fold in folds] if pruning_thresholds else [list(folds)]:
        jobs = [(number, fold) for number in found for fold in part]
        runs = [plan_fusion_run(candidates[n], question.inner[fold], question.data, question.embed) for n, fold in jobs]
        reasons = [why_alone(run) for run in runs]
        alone = {number: reason for (number, _), reason in zip(jobs, reasons, strict=True)}

        def keeps_training(run: int, rung: float, score: float, jobs: list[tuple[int, int]] = jobs) -> bool:
            """Whether a candidate goes on in this fold; without a number there is nothing to go on with."""
            number, fold = jobs[run]
            mean = mean_of([*(f[SELECTION_METRIC] for f in found[number][:fold]), score]) if pruning_thresholds else 1.0
            return math.isfinite(score) and mean >= pruning_thresholds.get(reached(fold, rung), -math.inf)

        began = time.perf_counter()
        pruning_schedule = PruningSchedule(experiment.search.rungs, keeps_training)
        for numbers, metrics in _scored(runs, reasons, context, experiment.search.fusion_batch_size, pruning_schedule):
            seconds = (time.perf_counter() - began) / len(numbers)
            for n, scored in zip(numbers, metrics, strict=True):
                number, fold = jobs[n]
                found[number].append({"fold": fold, "seconds": seconds, "together": len(numbers)} | scored)
            finished = [
                of_folds(n, f, len(folds), pruning_thresholds, alone=alone[n])
                for n, f in found.items()
                if len(f) > part[-1]
            ]
            finished = [candidate for candidate in finished if candidate]
            if finished:
                tune.report({SELECTION_METRIC: finished[0][SELECTION_METRIC], "scored": json.dumps(finished)})
            for candidate in finished:
                del found[candidate["candidate"]]
            began = time.perf_counter()


def of_folds(
    number: int,
    scored: list[FoldScores],
    folds: int,
    pruning_thresholds: dict[float, float],
    *,
    alone: str = "",
    failed: str = "",
) -> dict[str, Any]:
    """A candidate that has its last fold behind it, or a mean below the bar, or has failed; empty for any other."""
    whole = sorted(scored, key=lambda fold: fold["fold"])
    mean = mean_of([fold[SELECTION_METRIC] for fold in whole]) if whole else math.nan
    ended = sum(fold.get("share", 1.0) == 1 for fold in whole)
    far = reached(ended, whole[-1].get("share", 0.0) if ended < len(whole) else 0.0)
    pruned = ended < folds and mean < pruning_thresholds.get(far, -math.inf)
    if ended < folds and not pruned and math.isfinite(mean) and not failed:
        return {}
    found = {"candidate": number, SELECTION_METRIC: mean, "folds": whole, "alone": alone, "pruned": pruned}
    return found | ({"failed": failed} if failed else {})


def _scored(
    runs: list[Run],
    reasons: list[str],
    context: WorkerContext,
    fusion_batch_size: int,
    pruning_schedule: PruningSchedule,
) -> Iterator[tuple[list[int], list[dict[str, float]]]]:
    """Numbers of runs and their scores, as they come."""
    batched = [n for n, reason in enumerate(reasons) if not reason]
    mine = replace(
        pruning_schedule, stays=lambda n, look, score: pruning_schedule.keeps_training(batched[n], look, score)
    )
    for numbers, metrics in score_heads(
        [runs[n] for n in batched], context, fusion_batch_size=fusion_batch_size, pruning_schedule=mine
    ):
        yield [batched[n] for n in numbers], metrics
    for n in (n for n, reason in enumerate(reasons) if reason):
        try:
            metrics = train_and_score_split(runs[n], context)
        except torch.cuda.OutOfMemoryError:
            metrics = {SELECTION_METRIC: float("nan")}  # the candidate's own fault: it fails, and the search goes on
        yield [n], [metrics]


# Everything trained


class Control:
    """An actor beside the search's driver, by which it speaks with the drivers of candidates (`full`)."""

    def __init__(self) -> None:
        self._stopped = False
        self._progress: dict[int, tuple[float, str]] = {}

    def stop(self) -> None:
        self._stopped = True

    def report_progress(self, number: int, share: float, note: str) -> bool:
        """How much of a candidate is trained, 0 to 1; whether its driver should save and leave."""
        self._progress[number] = share, note
        return self._stopped

    def get_progress(self) -> dict[int, tuple[float, str]]:
        return self._progress


def candidate_runs(experiment: Experiment, question: Question) -> list[list[Run]]:
    """What one candidate trains on each inner fold; the last run of each is scored."""
    return [runs_of(experiment, split, question.data, embed=question.embed) for split in question.inner]


def full(
    config: dict[str, Any],
    experiment: Experiment,
    question: Question,
    shards: str,
    index: ShardIndex,
    study: str,
    control: Any,
) -> None:
    """The driver of one candidate: a group of workers trains it on one inner fold after the other.

    Raises:
        DataError: Something that is not the candidate's fault; it stays open in the study.
    """
    ((number, changes),) = config["candidates"]
    e = override(experiment, changes)
    e = replace(e, runtime=replace(e.runtime, groups=1))
    results, pruning_thresholds = Store(e.store.results), dict(config["bars"])
    known = {row["fold"]: row for row in config["known"]}
    runs = candidate_runs(e, question)
    found: dict[int, FoldScores] = {}  # in the order of the folds
    state = State({}, {}, 0.0, "", False, ())
    pruned_at, leaving, last_update = 0.0, False, time.monotonic()

    def pruned() -> bool:
        """Whether the folds so far are enough to leave this candidate."""
        if not found or len(found) == len(runs):
            return False
        mean = mean_of([fold[SELECTION_METRIC] for fold in found.values()])
        return not math.isfinite(mean) or mean < pruning_thresholds.get(reached(len(found)), -math.inf)

    def update_progress(now: State) -> bool:
        nonlocal state, last_update, leaving, pruned_at
        state = now
        while len(found) < len(runs) and not pruned():
            fold = len(found)
            if fold in known:
                found[fold] = {k: v for k, v in known[fold].items() if k not in OF_CANDIDATE}
                continue
            key = runs[fold][-1].key
            measured = _measured(results, state.done[key], question.inner[fold]) if key in state.done else {}
            if not measured:
                break
            found[fold] = {"fold": fold, "seconds": time.monotonic() - last_update, "together": 1} | measured
            last_update = time.monotonic()
        if pruned() and not pruned_at:
            pruned_at = time.monotonic()
        share = state.epochs_done / sum(run.epochs for run in {r.key: r for fold in runs for r in fold}.values())
        leaving = ray.get(control.tell.remote(number, min(1.0, share), state.note))
        return bool(leaving or pruned_at or state.failed)

    failed = ""
    todo = [run for fold, of_fold in enumerate(runs) if fold not in known for run in of_fold]
    if not update_progress(state) and todo:
        for run in todo:
            if not results.list_files(f"runs/{run.key}"):
                results.write_json(f"runs/{run.key}/{STUDY_FILE}", study)
        try:
            update_progress(
                run_each(
                    e, todo, Store(shards), index, question.embed, title=f"candidate {number}", ends=update_progress
                )
            )
        except TrainingInterrupted:
            pass  # by `look`, or another way that the job was told to end
        except ConfigError as error:
            failed = str(error)
    if not pruned_at:
        for key, reason in state.failed.items():
            if key not in state.own:
                raise DataError(f"{key}: {reason}")
            failed = failed or f"{key}: {reason}"
    for fold in range(len(found), len(runs)) if not pruned_at and not failed else ():
        # Equal training rows were trained before, and judged by other rows than those of this fold.
        key = runs[fold][-1].key
        if key not in state.done:
            return tune.report(NOTHING)
        began = time.monotonic()
        task = Task(f"{results}/{state.done[key]}", question.inner[fold].validation)
        (table,) = score(e, [task], Store(shards), index)
        if isinstance(table, str):
            raise DataError(table)
        found[fold] = {"fold": fold, "seconds": time.monotonic() - began, "together": 1}
        found[fold] |= {f"validation_{name}": value for name, value in compute_scores(table).items()}
    rows = list(found.values())
    if failed:
        rows += [{"fold": len(rows), "seconds": math.nan, "together": 1, SELECTION_METRIC: math.nan}]
    if pruned_at:
        rows[-1]["released_s"] = time.monotonic() - pruned_at  # until its workers' CPUs and GPUs were free again
    summary = of_folds(number, rows, len(runs), pruning_thresholds, failed=failed)
    tune.report({SELECTION_METRIC: summary[SELECTION_METRIC], "scored": json.dumps([summary])} if summary else NOTHING)


def _measured(results: Store, prefix: str, split: Split) -> dict[str, float]:
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

"""All folds of a protocol as one job: trained by one queue, tested once, one table.

A fold that fails is named at the end; the others are trained, scored and shown all the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from eav_ray.config import Experiment, digest, to_dict
from eav_ray.data.io import parquet
from eav_ray.data.shards.dataset import Dataset, open_dataset
from eav_ray.data.splits import Split, count_folds, list_labeled_recordings, make_split
from eav_ray.distributed.connection import connect_experiment
from eav_ray.distributed.scoring import ScoringTask, score_checkpoints
from eav_ray.distributed.worker_groups import train_runs
from eav_ray.errors import ConfigError, DataError, UnrecoverableError
from eav_ray.pipelines.inference.checkpoint_names import record_latest
from eav_ray.pipelines.train.fold_records import FOLDS_FORMAT, parse_fold_records
from eav_ray.pipelines.train.workload import announce_workload
from eav_ray.reporting.score_reports import ScoreReport, choose_report
from eav_ray.reporting.tables import describe_test_side
from eav_ray.storage import Store, encode_documents, list_package_versions
from eav_ray.training.checkpoint import OpenedCheckpoint, find_finished_checkpoints
from eav_ray.training.metrics import RECORDING_COLUMNS
from eav_ray.training.run_spec import Run, plan_runs
from eav_ray.training.runner import find_finished_runs
from eav_ray.words import format_count, format_recordings

PREDICTIONS_FILE = "predictions.parquet"


@dataclass(frozen=True)
class PlannedFold:
    """One fold: its split, and the trainings that it needs, the last of which is the result."""

    number: int
    split: Split
    runs: list[Run]

    @property
    def subjects(self) -> list[str]:
        return list(dict.fromkeys(i.split("/")[0] for i in self.split.test))


@dataclass(frozen=True)
class CVResult:
    """What the results store keeps of a protocol."""

    predictions: pd.DataFrame  # of all folds, one row a window, with a column `fold`
    fold_records: list[
        dict[str, Any]
    ]  # fold, run, checkpoint, commit_sha256, test, collapse; with a search, what it chose


@dataclass(frozen=True)
class CVReport:
    result: CVResult
    failed: dict[int, str]  # fold -> reason
    text: str


def cross_validate(experiment: Experiment) -> CVReport:
    """Train and test every fold, or what is left of them; `split.index` does not matter.

    Raises:
        ConfigError: A fold that cannot be made, of too few people or recordings.
        DataError: Not one fold could be scored, or another process is at the same protocol.
    """
    e = experiment
    data, results = open_dataset(e), Store(e.store.results)
    folds = plan_cv_folds(e, data)

    def train_and_evaluate(e: Experiment) -> tuple[CVResult, dict[int, str]]:
        return evaluate_folds(e, folds, data, results, train_folds(e, folds, data, results))

    return load_or_run(e, folds, data, make_protocol_key(e, folds), train_and_evaluate)


def load_or_run(
    e: Experiment,
    folds: list[PlannedFold],
    data: Dataset,
    key: str,
    run: Callable[[Experiment], tuple[CVResult, dict[int, str]]],
) -> CVReport:
    """What the results store keeps of a protocol of this key, or else what is made now, on a Ray.

    Args:
        run: Takes the experiment, connected to Ray; returns what is to be kept, and why folds are missing; where none
            is, it is committed.
    Raises:
        DataError: Not one fold could be scored, or another process is at the same.
    """
    results, name = Store(e.store.results), f"protocols/{key}"
    failed: dict[int, str] = {}
    with results.lock_unfinished(name) as results:
        if results.is_committed(name):
            result = read_cv_result(results, name)
        else:
            with connect_experiment(e) as connected:
                result, failed = run(connected)
            if not result.fold_records:
                raise DataError(describe_missing_folds(failed, folds))
            if not failed:
                results.commit(name, _encode_result(e, result))
    if not failed:
        record_latest(Store(e.store.results), "protocols", key)
    report = choose_report(data, {f.number: f.split.train for f in folds})
    text = format_cv_report(e, folds, report, result, failed, results.format_path(name))
    return CVReport(result, failed, text)


def plan_cv_folds(experiment: Experiment, data: Dataset) -> list[PlannedFold]:
    """Every fold of the experiment's protocol.

    Raises:
        ConfigError: A fold that cannot be made, by its number.
    """
    e = experiment
    items = list_labeled_recordings(data.windows.ids, e.data, e.seed)
    planned = []
    for number in range(count_folds(items, e.split)):
        fold_experiment = replace(e, split=replace(e.split, index=number))
        try:
            split = make_split(items, fold_experiment.split)
        except ConfigError as error:
            raise ConfigError(f"fold {number} cannot be made: {error}") from None
        planned.append(PlannedFold(number, split, plan_runs(fold_experiment, split, data.digest)))
    return planned


def make_protocol_key(experiment: Experiment, folds: list[PlannedFold]) -> str:
    """Equal only for equal models tested on equal recordings."""
    return f"{experiment.name}-{digest(FOLDS_FORMAT, [[f.runs[-1].key, sorted(f.split.test)] for f in folds])}"


def train_folds(e: Experiment, folds: list[PlannedFold], data: Dataset, results: Store) -> dict[str, str]:
    """Train what is not trained yet; returns why a run, by its key, could not be; "" stands for all others."""
    announce_workload(e, [run for f in folds for run in f.runs], data)
    finished = find_finished_runs([f.runs[-1] for f in folds], results)
    left = [f for f in folds if f.runs[-1].key not in finished]
    if not left:
        return {}
    try:
        return train_runs(e, [run for f in left for run in f.runs], data, title="train").failed
    except UnrecoverableError:
        raise
    except DataError as error:
        return {"": str(error)}  # what was trained is in the store


def evaluate_folds(
    e: Experiment, folds: list[PlannedFold], data: Dataset, results: Store, reasons: dict[str, str]
) -> tuple[CVResult, dict[int, str]]:
    """Score every fold that has a finished model.

    Args:
        reasons: Why a run has none (`train_folds`).
    """
    default_reason = reasons.get("", "it has no finished checkpoint")
    trained: list[tuple[PlannedFold, OpenedCheckpoint]] = []
    failed: dict[int, str] = {}
    finished = find_finished_checkpoints(results, [fold.runs[-1].key for fold in folds])
    for fold in folds:
        key = fold.runs[-1].key
        if checkpoint := finished.get(key):
            trained.append((fold, checkpoint))
        else:
            failed[fold.number] = reasons.get(key, default_reason)
    tasks = [ScoringTask(checkpoint, fold.split.test) for fold, checkpoint in trained]
    tables, fold_records = [], []
    for (fold, checkpoint), scored in zip(trained, score_checkpoints(e, tasks, data), strict=True):
        if scored.problem:
            failed[fold.number] = scored.problem
            continue
        tables.append(scored.predictions.assign(fold=fold.number))
        fold_records.append(
            {
                "fold": fold.number,
                "run": fold.runs[-1].key,
                "checkpoint": checkpoint.prefix,
                "commit_sha256": checkpoint.commit_sha256,
                "test": list(fold.split.test),
                "modality_collapse": checkpoint.metrics.get("modality_collapse", []),
            }
        )
    return CVResult(pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(), fold_records), failed


def _encode_result(e: Experiment, result: CVResult) -> dict[str, bytes]:
    folds = {"format": FOLDS_FORMAT, "folds": result.fold_records}
    documents = {"experiment": to_dict(e), "folds": folds, "versions": list_package_versions()}
    return encode_documents(documents) | {PREDICTIONS_FILE: parquet.encode_dataframe(result.predictions)}


def read_cv_result(results: Store, name: str) -> CVResult:
    """Raises DataError where it was damaged."""
    files, path = results.read_committed(name), results.format_path(name)
    records = parse_fold_records(files, path)
    if PREDICTIONS_FILE not in files:
        raise DataError(f"{path} was damaged; delete it and give the command again")
    return CVResult(parquet.decode_dataframe(files[PREDICTIONS_FILE], path), records)


def format_cv_report(
    e: Experiment,
    folds: list[PlannedFold],
    report: ScoreReport,
    result: CVResult,
    failed: dict[int, str],
    path: str,
) -> str:
    """The table of all folds that were scored, and a line for those that were not."""
    scored = result.predictions[RECORDING_COLUMNS].drop_duplicates()
    head = (
        f"{e.split.protocol}, {len(result.fold_records)} of {format_count(len(folds), 'fold')}: {report.heading}, "
        f"{format_recordings(len(scored), scored['subject'].nunique())} {describe_test_side(folds[0].split)}; access "
        f"to them {e.split.access}"
    )
    findings = {record["fold"]: record["modality_collapse"] for record in result.fold_records}
    modalities = sorted(e.data.modalities)
    lines = [head, report.format_protocol(result.predictions, modalities, findings)]
    lines += report.format_warnings(result.predictions, modalities, e)
    searches = {fact["fold"]: fact["search"] for fact in result.fold_records if "search" in fact}
    if searches:
        lines.append(report.format_searches(result.predictions, modalities, searches))
    lines.append(describe_missing_folds(failed, folds) if failed else f"predictions: {path}")
    return "\n".join(lines)


def describe_missing_folds(failed: dict[int, str], folds: list[PlannedFold]) -> str:
    """One line that names the folds that were not scored, and why the first was not."""
    names = [_describe_fold(folds[number]) for number in sorted(failed)]
    reason = failed[min(failed)]
    return (
        f"{len(failed)} of {format_count(len(folds), 'fold')} could not be trained or scored: {', '.join(names)}; "
        f"rerun the same command to take them up again; the first: {reason}"
    )


def _describe_fold(fold: PlannedFold) -> str:
    return f"{fold.number} ({fold.subjects[0]})" if len(fold.subjects) == 1 else str(fold.number)

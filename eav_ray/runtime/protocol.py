"""All folds of a protocol as one job: trained by one queue, tested once, one table.

A fold that fails is named at the end; the others are trained, scored and shown all the same.
"""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from eav_ray.config import Experiment, digest, to_dict
from eav_ray.data import arrow
from eav_ray.data.split import Split, count_folds, list_labeled_recordings, make_split
from eav_ray.errors import ConfigError, DataError
from eav_ray.report.table import apart, optimism, optimism_text, protocol_table
from eav_ray.runtime import cluster
from eav_ray.runtime.groups import run_each
from eav_ray.runtime.score import Task, score
from eav_ray.runtime.train import Data, announce, open_data, runs_of
from eav_ray.storage import COMMIT, Store, list_package_versions, sha256
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.plan import Run
from eav_ray.training.run import is_run_finished

FORMAT = 2  # raise when what is kept of a protocol changes


@dataclass(frozen=True)
class Planned:
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
    folds: list[dict[str, Any]]  # fold, run, checkpoint, commit_sha256, test, collapse; with a search, what it chose


@dataclass(frozen=True)
class CVReport:
    result: CVResult
    failed: dict[int, str]  # fold -> reason
    text: str


def run_protocol(experiment: Experiment) -> CVReport:
    """Train and test every fold, or what is left of them; `fold.index` does not matter.

    Raises:
        ConfigError: A fold that cannot be made, of too few people or recordings.
        DataError: Not one fold could be scored, or another process is at the same protocol.
    """
    e = experiment
    data, results = open_data(e), Store(e.store.results)
    folds = plan(e, data)

    def make() -> tuple[CVResult, dict[int, str]]:
        return evaluate_folds(e, folds, data, results, train_folds(e, folds, data, results))

    return load_or_run(e, folds, data, protocol_key(e, folds), make)


def load_or_run(
    e: Experiment, folds: list[Planned], data: Data, key: str, make: Callable[[], tuple[CVResult, dict[int, str]]]
) -> CVReport:
    """What the results store keeps of a protocol of this key, or else what is made now, on a Ray.

    Args:
        make: Returns what is to be kept, and why folds are missing; where none is, it is committed.
    Raises:
        DataError: Not one fold could be scored, or another process is at the same.
    """
    results, name = Store(e.store.results), f"protocols/{key}"
    failed: dict[int, str] = {}
    with results.lock(f"{name}/lock"):
        if results.is_committed(name):
            result = read_kept(results, name)
        else:
            with cluster.connect_to_ray(e.runtime):
                result, failed = make()
            if not result.folds:
                raise DataError(missing(failed, folds))
            if not failed:
                results.commit(name, _files(e, result))
    return CVReport(result, failed, text(e, folds, data.index.classes, result, failed, f"{results}/{name}"))


def plan(experiment: Experiment, data: Data) -> list[Planned]:
    """Every fold of the experiment's protocol.

    Raises:
        ConfigError: A fold that cannot be made, by its number.
    """
    e = experiment
    items = list_labeled_recordings(data.windows.ids, e.data, e.seed)
    planned = []
    for number in range(count_folds(items, e.split)):
        of_fold = replace(e, fold=replace(e.split, index=number))
        try:
            split = make_split(items, of_fold.split)
        except ConfigError as error:
            raise ConfigError(f"fold {number} cannot be made: {error}") from None
        planned.append(Planned(number, split, runs_of(of_fold, split, data.digest)))
    return planned


def protocol_key(experiment: Experiment, folds: list[Planned]) -> str:
    """Equal only for equal models tested on equal recordings."""
    return f"{experiment.name}-{digest(FORMAT, [[f.runs[-1].key, sorted(f.split.test)] for f in folds])}"


def train_folds(e: Experiment, folds: list[Planned], data: Data, results: Store) -> dict[str, str]:
    """Train what is not trained yet; returns why a run, by its key, could not be; "" stands for all others."""
    announce(e, [run for f in folds for run in f.runs], data)
    left = [f for f in folds if not is_run_finished(f.runs[-1], results)]
    if not left:
        return {}
    seen = tuple(sorted({i for f in left for i in (*f.split.train, *f.split.validation)}))
    try:
        return run_each(e, [run for f in left for run in f.runs], data.shards, data.index, seen, title="train").failed
    except DataError as error:
        return {"": str(error)}  # what was trained is in the store


def evaluate_folds(
    e: Experiment, folds: list[Planned], data: Data, results: Store, reasons: dict[str, str]
) -> tuple[CVResult, dict[int, str]]:
    """Score every fold that has a finished model.

    Args:
        reasons: Why a run has none (`train_folds`).
    """
    otherwise = reasons.get("", "it has no finished checkpoint")
    prefixes = {f.number: finished(results, f.runs[-1].key) for f in folds}
    failed = {f.number: reasons.get(f.runs[-1].key, otherwise) for f in folds if not prefixes[f.number]}
    trained = [f for f in folds if f.number not in failed]
    tasks = [Task(f"{results}/{prefixes[f.number]}", f.split.test) for f in trained]
    tables, facts = [], []
    for fold, table in zip(trained, score(e, tasks, data.shards, data.index), strict=True):
        if isinstance(table, str):
            failed[fold.number] = table
            continue
        prefix = prefixes[fold.number]
        tables.append(table.assign(fold=fold.number))
        facts.append(
            {
                "fold": fold.number,
                "run": fold.runs[-1].key,
                "checkpoint": prefix,
                "commit_sha256": sha256(results.read(f"{prefix}/{COMMIT}")),
                "test": list(fold.split.test),
                "collapse": results.read_json(f"{prefix}/metrics.json").get("collapse", []),
            }
        )
    return CVResult(pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(), facts), failed


def finished(results: Store, key: str) -> str:
    """The prefix of a run's finished checkpoint, empty where there is none. Reads no weights."""
    for _, _, prefix in ckpt.list_checkpoints(results, key):
        with contextlib.suppress(DataError):  # a damaged one is passed over, as in training
            if results.read_json(f"{prefix}/state.json")["finished"]:
                return prefix
    return ""


def _files(e: Experiment, result: CVResult) -> dict[str, bytes]:
    documents = {"experiment": to_dict(e), "folds": result.folds, "versions": list_package_versions()}
    made = {f"{name}.json": json.dumps(tree, indent=1, sort_keys=True).encode() for name, tree in documents.items()}
    return made | {"predictions.parquet": arrow.encode_dataframe(result.predictions)}


def read_kept(results: Store, name: str) -> CVResult:
    """Raises DataError where it was damaged."""
    found = results.read_committed(name)
    try:
        table, folds = found["predictions.parquet"], json.loads(found["folds.json"])
    except (KeyError, ValueError):
        raise DataError(f"{results}/{name} was damaged; delete it and give the command again") from None
    return CVResult(arrow.decode_dataframe(table, f"{results}/{name}"), folds)


def text(
    e: Experiment, folds: list[Planned], classes: tuple[str, ...], result: CVResult, failed: dict[int, str], path: str
) -> str:
    """The table of all folds that were scored, and a line for those that were not."""
    scored = result.predictions[["subject", "recording"]].drop_duplicates()
    head = (
        f"{e.split.protocol}, {len(result.folds)} of {len(folds)} folds: accuracy in percent, {len(scored)} recordings of "
        f"{scored['subject'].nunique()} people {apart(folds[0].split)}"
    )
    findings = {fact["fold"]: fact["collapse"] for fact in result.folds}
    lines = [head, protocol_table(result.predictions, sorted(e.data.modalities), len(classes), findings)]
    searched = {fact["fold"]: fact["search"] for fact in result.folds if "search" in fact}
    if searched:
        of_fold = {n: rows for n, rows in result.predictions.groupby("fold")}
        lines.append(optimism_text({n: optimism(of_fold[n], s["inner"], s["changes"]) for n, s in searched.items()}))
    lines.append(missing(failed, folds) if failed else f"predictions: {path}")
    return "\n".join(lines)


def missing(failed: dict[int, str], folds: list[Planned]) -> str:
    """One line that names the folds that were not scored, and why the first was not."""
    names = [_named(folds[number]) for number in sorted(failed)]
    reason = failed[min(failed)]
    return (
        f"{len(failed)} of {len(folds)} folds could not be trained or scored: {', '.join(names)}; the same command "
        f"takes them up again; the first: {reason}"
    )


def _named(fold: Planned) -> str:
    return f"{fold.number} ({fold.subjects[0]})" if len(fold.subjects) == 1 else str(fold.number)

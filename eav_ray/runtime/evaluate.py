"""Test results and predictions as a person reads them."""

import contextlib
from dataclasses import dataclass

import pandas as pd

from eav_ray.config import Experiment, digest, override
from eav_ray.errors import DataError
from eav_ray.report.table import (
    FusionComparison,
    compare_fusion,
    describe_test_side,
    format_accuracy_table,
    format_collapse_warnings,
    list_sources,
    mark_correct_recordings,
)
from eav_ray.runtime import cluster
from eav_ray.runtime.beside import EvaluatedCheckpoint
from eav_ray.runtime.evidence import Subject, write, write_transfer
from eav_ray.runtime.inner import out_of_fold_predictions
from eav_ray.runtime.nested import make_nested_key, plan_fold_searches
from eav_ray.runtime.predict import evaluate, open_checkpoint
from eav_ray.runtime.protocol import PlannedFold, format_cv_report, make_protocol_key, plan_cv_folds, read_cv_result
from eav_ray.runtime.score import ScoringTask, is_stored
from eav_ray.runtime.train import Dataset, open_dataset
from eav_ray.runtime.transfer import is_own, titles, transfer
from eav_ray.storage import COMMIT, Store, sha256, split_store_path
from eav_ray.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class Tested:
    correct: pd.DataFrame  # one row a recording, one column a source
    comparison: FusionComparison | None  # None where there is one modality only
    text: str
    page: str  # path of the page of evidence


def evaluate_checkpoint(
    experiment: Experiment,
    path: str,
    *,
    bayes: dict[str, float] | None = None,
    out: str = "",
    temperature: bool = False,
) -> Tested:
    """Test a checkpoint on its own test side, once; or on another data set, where the experiment names one.

    Args:
        bayes: The best possible accuracy of each source, where it is known.
        out: Folder of the page of evidence; by default `evidence/<key of the run>` in the results store.
        temperature: Train the inner folds of its training people to fit a temperature (`inner.held_out`).
    """
    data, checkpoint = open_dataset(experiment), open_checkpoint(path)
    if not is_own(experiment, checkpoint, data.index):
        return _tested_elsewhere(experiment, path, data, checkpoint, out)
    with contextlib.ExitStack() as stack:
        if not is_stored(Store(experiment.store.results), ScoringTask(path, checkpoint.split.test), data.index):
            stack.enter_context(cluster.connect_to_ray(experiment.runtime))  # one for all that is to be scored
        table = evaluate(experiment, path, data.shards, data.index, data.windows.ids)
        return _write_checkpoint_page(experiment, path, data, checkpoint, table, bayes or {}, out, temperature)


def _write_checkpoint_page(
    experiment: Experiment,
    path: str,
    data: Dataset,
    checkpoint: Checkpoint,
    table: pd.DataFrame,
    bayes: dict[str, float],
    out: str,
    temperature: bool,
) -> Tested:
    names: list[str] = sorted(checkpoint.experiment.data.modalities)
    sources = list_sources(names)
    correct = mark_correct_recordings(table, sources)
    n_subjects = correct["subject"].nunique()
    lines = [
        f"accuracy in percent, {len(correct)} recordings of {n_subjects} people {describe_test_side(checkpoint.split)}",
        format_accuracy_table(correct, sources, len(data.index.classes), bayes),
    ]
    comparison = None
    if len(names) > 1:
        comparison = compare_fusion(correct, names)
        lines.append(str(comparison))
        lines += format_collapse_warnings(checkpoint.metrics)
    own, fold_index = checkpoint.experiment, checkpoint.experiment.split.index
    store, name = split_store_path(path)
    out = out or f"{Store(experiment.store.results)}/evidence/{store.read_json(f'{name}/state.json')['key']}"
    description = (
        f"{own.name}, trained under {checkpoint.split.protocol}, fold {fold_index}, seed {own.seed}{_labels(own)}"
    )
    protocol = f"{checkpoint.split.protocol}, fold {fold_index} alone"
    subject = Subject(f"{own.name}: a checkpoint", description, describe_test_side(checkpoint.split), protocol)
    held = out_of_fold_predictions(experiment, [(fold_index, own)], data) if temperature else None
    page = write(
        experiment, data, [EvaluatedCheckpoint(fold_index, path, checkpoint.split.test, table)], subject, out, held
    )
    lines.append(f"page: {page}")
    return Tested(correct, comparison, "\n".join(lines), page)


def _tested_elsewhere(experiment: Experiment, path: str, data: Dataset, checkpoint: Checkpoint, out: str) -> Tested:
    found = transfer(experiment, path)
    store, name = split_store_path(path)
    key = digest(store.read_json(f"{name}/state.json")["key"], data.digest, sorted(found.modalities))
    trained, tested_on = titles(checkpoint.experiment.data, experiment.data)
    own = checkpoint.experiment
    description = f"{own.name}, trained on {trained}, tested on {tested_on}, over the classes that both have: "
    subject = Subject(
        f"{own.name}: {trained} to {tested_on}",
        description + ", ".join(found.classes) + _labels(own),
        "of another data set",
        f"from {trained} to {tested_on}",
    )
    test = tuple(sorted(set(found.windows["subject"] + "/" + found.windows["recording"])))
    evaluated = EvaluatedCheckpoint(0, path, test, found.windows)
    out = out or f"{Store(experiment.store.results)}/evidence/transfer-{key}"
    page = write_transfer(experiment, data, evaluated, sorted(found.modalities), found.classes, subject, out)
    return Tested(found.correct, found.comparison, f"{found.text}\npage: {page}", page)


def _labels(e: Experiment) -> str:
    return "" if e.data.labels == "true" else f"; labels are {e.data.labels}: a control that must end at chance"


def evaluate_protocol(experiment: Experiment, *, searched: bool, out: str, temperature: bool = False) -> str:
    """The page of evidence of a whole protocol that `jobs/protocol.py` finished; returns what is printed.

    Args:
        searched: Of the protocol with a search in every fold.
        out, temperature: As for `evaluate_checkpoint`.
    Raises:
        DataError: It has not been run, or not to its end.
    """
    e, data = experiment, open_dataset(experiment)
    if searched:
        of_search = plan_fold_searches(e, data)
        folds = [PlannedFold(f.number, f.plan.outer_split, []) for f in of_search]
        key = make_nested_key(e, of_search)
    else:
        folds = plan_cv_folds(e, data)
        key = make_protocol_key(e, folds)
    results, name = Store(e.store.results), f"protocols/{key}"
    if not results.is_committed(name):
        raise DataError(
            f"{results} has no finished protocol {e.split.protocol} of this experiment; run jobs/protocol.py with the "
            "same arguments first, or name a checkpoint with --checkpoint"
        )
    cv_result = read_cv_result(results, name)
    by_fold = dict(list(cv_result.predictions.groupby("fold")))
    sides = {f.number: f.split for f in folds}
    evaluated = [
        EvaluatedCheckpoint(
            f["fold"],
            f"{results}/{f['checkpoint']}",
            tuple(f["test"]),
            by_fold[f["fold"]].reset_index(drop=True),
            sides[f["fold"]],
        )
        for f in cv_result.fold_records
    ]
    for f in cv_result.fold_records:
        if sha256(results.read(f"{f['checkpoint']}/{COMMIT}")) != f["commit_sha256"]:
            raise DataError(
                f"{results}/{f['checkpoint']} is not the checkpoint that {results}/{name} has predictions of; delete "
                f"{results}/{name} and run jobs/protocol.py again"
            )
    searched_too = ", every fold searched on inner folds of its own training people" if searched else ""
    description = f"{e.name}, {len(evaluated)} folds of {e.split.protocol}{searched_too}, seed {e.seed}{_labels(e)}"
    protocol = e.split.protocol + (", searched" if searched else "")
    subject = Subject(f"{e.name}: {protocol}", description, describe_test_side(folds[0].split), protocol, e)
    # The temperature is that of models of the same shape: of what each fold's search chose.
    own = [(f["fold"], override(e, f["search"]["changes"]) if "search" in f else e) for f in cv_result.fold_records]
    held = out_of_fold_predictions(e, own, data) if temperature else None
    page = write(e, data, evaluated, subject, out or f"{results}/evidence/{key}", held)
    return f"{format_cv_report(e, folds, data.index.classes, cv_result, {}, f'{results}/{name}')}\npage: {page}"

"""Test results and predictions as a person reads them."""

import contextlib
from dataclasses import dataclass

import pandas as pd

from eav_ray.config import Experiment, digest
from eav_ray.data.shards.dataset import Dataset, open_dataset
from eav_ray.distributed.connection import connect_experiment
from eav_ray.distributed.scoring import ScoringTask, is_stored
from eav_ray.errors import DataError
from eav_ray.evaluation.compatibility import check_kind_of_outputs
from eav_ray.evaluation.expected_result import refuse_final
from eav_ray.pipelines.evaluate.audited_checkpoint import EvaluatedCheckpoint
from eav_ray.pipelines.evaluate.number_limits import require_classes
from eav_ray.pipelines.evaluate.page_results import PageInfo
from eav_ray.pipelines.evaluate.results_page import write_results_page, write_transfer_page
from eav_ray.pipelines.evaluate.split_predictions import predict_test_split
from eav_ray.pipelines.evaluate.transfer import describe_datasets, evaluate_transfer, is_training_dataset
from eav_ray.pipelines.search.nested_cv import make_nested_key, plan_fold_searches
from eav_ray.pipelines.train.cross_validation import (
    PlannedFold,
    format_cv_report,
    make_protocol_key,
    plan_cv_folds,
    read_cv_result,
)
from eav_ray.pipelines.train.inner_cv import out_of_fold_predictions
from eav_ray.reporting.score_reports import choose_report
from eav_ray.reporting.tables import describe_test_side, format_collapse_warnings
from eav_ray.storage import Store
from eav_ray.training.checkpoint import OpenedCheckpoint, open_finished_checkpoint
from eav_ray.tuning.search_space import apply_candidate
from eav_ray.words import format_count, format_recordings

NO_TEMPERATURE = "leave it out: numbers have no probabilities, and the page shows their slope and bias"


@dataclass(frozen=True)
class EvaluationResult:
    # One row a recording, one column a source: whether it is right; of numbers what is true and what each predicts.
    correct: pd.DataFrame
    text: str
    page_path: str  # path of the results page


def evaluate_checkpoint(
    experiment: Experiment,
    path: str,
    *,
    bayes: dict[str, float] | None = None,
    out: str = "",
    fit_temperature: bool = False,
) -> EvaluationResult:
    """Test a checkpoint on its own test side, once; or on another data set, where the experiment names one.

    Args:
        bayes: The best possible accuracy of each source, where it is known.
        out: Folder of the results page; by default `results_pages/<key of the run>` in the results store.
        fit_temperature: Train the inner folds of its training people to fit a temperature
            (`inner_cv.out_of_fold_predictions`).
    """
    data, checkpoint = open_dataset(experiment), open_finished_checkpoint(path)
    if fit_temperature:
        require_classes(checkpoint.experiment.data, "--temperature", NO_TEMPERATURE, of=checkpoint.path)
    check_kind_of_outputs(checkpoint, data.index)
    if not is_training_dataset(experiment, checkpoint, data.index):
        require_classes(
            checkpoint.experiment.data,
            "a test on another data set",
            "predict its recordings with `eav predict` and score the table, or name the data set of the checkpoint",
            of=checkpoint.path,
        )
        return _write_transfer_page(experiment, data, checkpoint, out)
    refuse_final(checkpoint, "tested")
    with contextlib.ExitStack() as stack:
        task = ScoringTask(checkpoint, checkpoint.split.test)
        if not is_stored(Store(experiment.store.results), task, data.index):
            # One for all that is to be scored.
            experiment = stack.enter_context(connect_experiment(experiment))
        predictions = predict_test_split(experiment, checkpoint, data)
        return _write_checkpoint_page(experiment, data, checkpoint, predictions, bayes or {}, out, fit_temperature)


def _write_checkpoint_page(
    experiment: Experiment,
    data: Dataset,
    checkpoint: OpenedCheckpoint,
    predictions: pd.DataFrame,
    bayes: dict[str, float],
    out: str,
    fit_temperature: bool,
) -> EvaluationResult:
    modalities: list[str] = sorted(checkpoint.experiment.data.modalities)
    trained_experiment, fold_index = checkpoint.experiment, checkpoint.experiment.split.index
    report = choose_report(data, {fold_index: checkpoint.split.train}, bayes)
    correct = report.list_recordings(predictions, modalities)
    head = f"{report.heading}, {format_recordings(len(correct), correct['subject'].nunique())}"
    lines = [
        f"{head} {describe_test_side(checkpoint.split)}",
        *report.format_checkpoint(predictions, modalities),
    ]
    if len(modalities) > 1:
        lines += format_collapse_warnings(checkpoint.metrics)
    lines += report.format_warnings(predictions, modalities, trained_experiment)
    out = out or f"{Store(experiment.store.results)}/results_pages/{checkpoint.key}"
    description = (
        f"{trained_experiment.name}, trained under {checkpoint.split.protocol}, fold {fold_index}, seed "
        f"{trained_experiment.seed}{_describe_labels(trained_experiment)}"
    )
    protocol = f"{checkpoint.split.protocol}, fold {fold_index} alone"
    page_info = PageInfo(
        f"{trained_experiment.name}: a checkpoint", description, describe_test_side(checkpoint.split), protocol
    )
    out_of_fold = (
        out_of_fold_predictions(experiment, [(fold_index, trained_experiment)], data) if fit_temperature else None
    )
    page_path = write_results_page(
        experiment,
        data,
        [EvaluatedCheckpoint(fold_index, checkpoint, checkpoint.split.test, predictions)],
        page_info,
        out,
        out_of_fold,
    )
    lines.append(f"page: {page_path}")
    return EvaluationResult(correct, "\n".join(lines), page_path)


def _write_transfer_page(
    experiment: Experiment, data: Dataset, checkpoint: OpenedCheckpoint, out: str
) -> EvaluationResult:
    result = evaluate_transfer(experiment, data, checkpoint)
    key = digest(checkpoint.key, data.digest, sorted(result.modalities))
    trained_on, tested_on = describe_datasets(checkpoint.experiment.data, experiment.data)
    trained_experiment = checkpoint.experiment
    description = (
        f"{trained_experiment.name}, trained on {trained_on}, tested on {tested_on}, over the classes that both have: "
    )
    page_info = PageInfo(
        f"{trained_experiment.name}: {trained_on} to {tested_on}",
        description + ", ".join(result.classes) + _describe_labels(trained_experiment),
        "of another data set",
        f"from {trained_on} to {tested_on}",
    )
    test_ids = tuple(sorted(set(result.predictions["subject"] + "/" + result.predictions["recording"])))
    evaluated = EvaluatedCheckpoint(0, checkpoint, test_ids, result.predictions)
    out = out or f"{Store(experiment.store.results)}/results_pages/transfer-{key}"
    page_path = write_transfer_page(
        experiment, data, evaluated, sorted(result.modalities), result.classes, page_info, out
    )
    return EvaluationResult(result.correct, f"{result.text}\npage: {page_path}", page_path)


def _describe_labels(e: Experiment) -> str:
    return "" if e.data.labels == "true" else f"; labels are {e.data.labels}: a control that must end at chance"


def evaluate_cross_validation(
    experiment: Experiment, *, searched: bool, out: str, fit_temperature: bool = False
) -> str:
    """The results page of a whole protocol that `eav protocol` finished; returns what is printed.

    Args:
        searched: Of the protocol with a search in every fold.
        out, fit_temperature: As for `evaluate_checkpoint`.
    Raises:
        DataError: It has not been run, or not to its end.
    """
    if fit_temperature:
        require_classes(experiment.data, "--temperature", NO_TEMPERATURE)
    e, data = experiment, open_dataset(experiment)
    if searched:
        plans = plan_fold_searches(e, data)
        folds = [PlannedFold(plan.fold, plan.outer_split, []) for plan in plans]
        key = make_nested_key(e, plans)
    else:
        folds = plan_cv_folds(e, data)
        key = make_protocol_key(e, folds)
    results, name = Store(e.store.results), f"protocols/{key}"
    if not results.is_committed(name):
        raise DataError(
            f"{results} has no finished protocol {e.split.protocol} of this experiment; run `eav protocol` with the "
            "same arguments first, or name a checkpoint with --checkpoint"
        )
    cv_result = read_cv_result(results, name)
    by_fold = dict(list(cv_result.predictions.groupby("fold")))
    split_by_fold = {f.number: f.split for f in folds}
    evaluated = [
        EvaluatedCheckpoint(
            f["fold"],
            OpenedCheckpoint(results, f["checkpoint"]),
            tuple(f["test"]),
            by_fold[f["fold"]].reset_index(drop=True),
            split_by_fold[f["fold"]],
        )
        for f in cv_result.fold_records
    ]
    for fold, f in zip(evaluated, cv_result.fold_records, strict=True):
        if fold.checkpoint.commit_sha256 != f["commit_sha256"]:
            raise DataError(
                f"{fold.checkpoint.path} is not the checkpoint that {results.format_path(name)} has predictions of; "
                f"delete {results.format_path(name)} and run `eav protocol` again"
            )
    search_note = ", every fold searched on inner folds of its own training people" if searched else ""
    n_folds = format_count(len(evaluated), "fold")
    description = f"{e.name}, {n_folds} of {e.split.protocol}{search_note}, seed {e.seed}{_describe_labels(e)}"
    protocol = e.split.protocol + (", searched" if searched else "")
    page_info = PageInfo(f"{e.name}: {protocol}", description, describe_test_side(folds[0].split), protocol, e)
    # The temperature is that of models of the same shape: of what each fold's search chose.
    fold_experiments = [
        (f["fold"], apply_candidate(e, f["search"]["changes"]) if "search" in f else e) for f in cv_result.fold_records
    ]
    out_of_fold = out_of_fold_predictions(e, fold_experiments, data) if fit_temperature else None
    page_path = write_results_page(
        e, data, evaluated, page_info, out or results.format_path(f"results_pages/{key}"), out_of_fold
    )
    report = choose_report(data, {f.number: f.split.train for f in folds})
    text = format_cv_report(e, folds, report, cv_result, {}, results.format_path(name))
    return f"{text}\npage: {page_path}"

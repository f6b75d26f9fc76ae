"""Everything that the page shows of tested checkpoints, gathered: audited, scored, measured, held against the rest.

A run that does not pass the audit has no page.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from eav_ray.config import Experiment
from eav_ray.data.recordings import LISTENING
from eav_ray.data.shards.dataset import Dataset, open_dataset
from eav_ray.distributed.connection import connect_experiment
from eav_ray.distributed.scoring import ScoringTask, score_checkpoints
from eav_ray.errors import ConfigError, DataError
from eav_ray.evaluation import probability_calibration, results_tree
from eav_ray.evaluation.correctness import list_sources
from eav_ray.evaluation.leak_audit.audit import audit_checkpoint, audit_transfer
from eav_ray.evaluation.leak_audit.checks import LeakAudit
from eav_ray.evaluation.leak_audit.content import WindowContents
from eav_ray.pipelines.evaluate.audited_checkpoint import (
    AuditedCheckpoint,
    EvaluatedCheckpoint,
    open_audited,
    read_encoder_train_ids,
)
from eav_ray.pipelines.evaluate.baseline import collect_baselines
from eav_ray.pipelines.evaluate.page_results import PageInfo, ResultsTree, build_results
from eav_ray.pipelines.evaluate.page_scores import ClassScores, choose_page_scores
from eav_ray.pipelines.evaluate.related_results import collect_related, collect_searches, compare_protocols
from eav_ray.pipelines.evaluate.search_records import read_search_records
from eav_ray.reporting import results_page
from eav_ray.reporting.html import Section
from eav_ray.reporting.model_card import render_model_card
from eav_ray.storage import Store, split_store_path
from eav_ray.training.checkpoint_files import Checkpoint
from eav_ray.training.dataloader import subsample_evenly

MAX_TRAIN_RECORDINGS = 100  # recordings of the training side that are scored for the gap, of each checkpoint


def write_results_page(
    e: Experiment,
    data: Dataset,
    evaluated: Sequence[EvaluatedCheckpoint],
    page_info: PageInfo,
    out: str,
    out_of_fold: pd.DataFrame | None = None,
) -> str:
    """Audit, measure, and write `index.html`, `results.json` and `model_card.md`.

    Args:
        e: The experiment of the command; its stores and runtime are used.
        out: The folder, or `s3://...`.
        out_of_fold: Predictions of validation recordings by models that never saw them, with a column `fold`; without
            it they are made of the checkpoints' own validation sides, where they have any.
    Returns:
        The path of the page.
    Raises:
        DataError: A checkpoint fails the audit.
    """
    results = Store(e.store.results)
    contents = WindowContents(data.windows, e.preprocessing)

    def audit_fold(fold: EvaluatedCheckpoint) -> AuditedCheckpoint:
        # Whatever is reported is audited, whether or not it is what was said to be.
        reported = tuple(sorted({*fold.test_ids, *(fold.predictions["subject"] + "/" + fold.predictions["recording"])}))
        expected_experiment = page_info.experiment and replace(
            page_info.experiment, split=replace(page_info.experiment.split, index=fold.fold)
        )
        return open_audited(
            fold,
            lambda c: audit_checkpoint(
                c,
                contents,
                reported,
                read_encoder_train_ids(results, c),
                expected_experiment,
                read_search_records(results, data, c.experiment.data.dataset),
            ),
        )

    audited = [audit_fold(fold) for fold in evaluated]
    trained_experiment = page_info.experiment or audited[0].checkpoint.experiment
    modalities: list[str] = sorted(trained_experiment.data.modalities)
    predictions = pd.concat([f.predictions.assign(fold=f.fold) for f in evaluated], ignore_index=True)
    with connect_experiment(e) as e:
        train_predictions, validation_predictions = _score_train_and_validation(e, audited, data)
    validation_predictions = out_of_fold if out_of_fold is not None else validation_predictions
    train_ids = {f.evaluated.fold: (f.evaluated.split or f.checkpoint.split).train for f in audited}
    scores = choose_page_scores(data, modalities, data.index.classes, train_ids)
    predictions = scores.prepare(predictions, validation_predictions)
    tree = build_results(
        trained_experiment, trained_experiment, data, audited, page_info, predictions, modalities, scores
    )
    tree |= scores.summarize_training(
        predictions, train_predictions, validation_predictions, out_of_fold=out_of_fold is not None
    )
    skipped_results: list[str] = []
    tree |= compare_protocols(
        trained_experiment, results, data, page_info.protocol, predictions, scores, skipped_results
    )
    if audited[0].checkpoint.split.protocol == trained_experiment.split.protocol:  # not of an adaptation
        tree["baselines"] = collect_baselines(results, trained_experiment, data, predictions, skipped_results)
    search_sections, tree["search"] = collect_searches(results, audited, trained_experiment, scores, skipped_results)
    return _write_page_files(tree | {"skipped_results": skipped_results}, search_sections, results, audited, out)


def write_transfer_page(
    e: Experiment,
    data: Dataset,
    evaluated: EvaluatedCheckpoint,
    modalities: list[str],
    classes: tuple[str, ...],
    page_info: PageInfo,
    out: str,
) -> str:
    """The page of a checkpoint that was tested on another data set.

    Args:
        e: Names the other data set.
        evaluated: Its predictions, labels and logits numbered by `classes`.
        modalities: The modalities that were shown.
        classes: Those that both sets have.
    Returns, raises: As `write`.
    """
    contents = WindowContents(data.windows, e.preprocessing)

    def audit_transferred(checkpoint: Checkpoint) -> LeakAudit:
        return audit_transfer(
            checkpoint, _load_training_contents(e, checkpoint), contents, evaluated.test_ids, modalities
        )

    audited = [open_audited(evaluated, audit_transferred)]
    predictions = evaluated.predictions.assign(fold=0)
    tree = build_results(
        audited[0].checkpoint.experiment,
        e,
        data,
        audited,
        page_info,
        predictions,
        modalities,
        ClassScores(modalities, classes),
    )
    tree["calibration"] = probability_calibration.summarize_calibration(predictions, list_sources(modalities), None)
    if len(modalities) > 1:
        tree["stacking_note"] = "No stacking: the other data set has no rows to fit it on."
    tree["calibration_note"] = "No temperature: the other data set has no rows to fit one on."
    return _write_page_files(tree, [], Store(e.store.results), [], out)


def _load_training_contents(e: Experiment, checkpoint: Checkpoint) -> WindowContents | None:
    """Of the data set that a checkpoint was trained on, where its shards lie where they did."""
    try:
        training_data = open_dataset(
            replace(checkpoint.experiment, store=replace(checkpoint.experiment.store, cache=e.store.cache))
        )
    except (ConfigError, DataError):
        return None
    if checkpoint.state.data_digest != training_data.digest:
        return None
    return WindowContents(training_data.windows, checkpoint.experiment.preprocessing)


def _write_page_files(
    tree: ResultsTree, extra_sections: list[Section], results: Store, audited: list[AuditedCheckpoint], out: str
) -> str:
    skipped_results = list(tree.get("skipped_results", []))
    related_sections, related_results = collect_related(results, audited, skipped_results)
    tree = results_tree.to_json_value(tree | related_results | {"skipped_results": skipped_results})
    store, name = split_store_path(out)
    folder = store.open_substore(name)
    folder.write("results.json", json.dumps(tree, indent=1).encode())
    folder.write("model_card.md", render_model_card(tree).encode())
    folder.write("index.html", results_page.render_results_page(tree, [*related_sections, *extra_sections]).encode())
    return f"{folder}/index.html"


def _score_train_and_validation(
    e: Experiment, audited: list[AuditedCheckpoint], data: Dataset
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Predictions of some recordings of the training sides, and of the validation sides where there are any.

    Of the kind that is tested: listening recordings, which are only ever trained on, would make another gap.
    """
    fold_tasks: list[tuple[int, ScoringTask]] = []
    ids = data.windows.ids
    non_listening_ids = set(ids["id"][ids["task"] != LISTENING])
    for one in audited:
        split_ = one.evaluated.split or one.checkpoint.split
        sampled_ids = subsample_evenly(
            np.array([i for i in split_.train if i in non_listening_ids] or split_.train), MAX_TRAIN_RECORDINGS
        )
        fold_tasks.append(
            (
                one.evaluated.fold,
                ScoringTask(one.checkpoint, tuple(map(str, sampled_ids)), allows_training_recordings=True),
            )
        )
        if split_.validation:
            fold_tasks.append((one.evaluated.fold, ScoringTask(one.checkpoint, split_.validation)))
    scoring_experiment = replace(audited[0].checkpoint.experiment, store=e.store, runtime=e.runtime)
    scored = score_checkpoints(scoring_experiment, [task for _, task in fold_tasks], data)
    train_tables, validation_tables = [], []
    for (number, task), one in zip(fold_tasks, scored, strict=True):
        tables = train_tables if task.allows_training_recordings else validation_tables
        tables.append(one.require().assign(fold=number))
    return pd.concat(train_tables, ignore_index=True), pd.concat(
        validation_tables, ignore_index=True
    ) if validation_tables else None

"""Everything that the page shows of tested checkpoints, gathered: audited, scored, measured, held against the rest.

A run that does not pass the audit has no page.
"""

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from eav_ray.config import Experiment, digest, to_dict
from eav_ray.data.bands import FREQUENCY_BANDS, compute_band_power
from eav_ray.data.eav import EAV_CHANNELS
from eav_ray.data.manifest import LISTENING
from eav_ray.data.shard import INDEX_FILE, QUALITY_COLUMNS
from eav_ray.data.split import list_labeled_recordings
from eav_ray.errors import ConfigError, DataError
from eav_ray.report import calibration, evidence, measure, protocols, statistics
from eav_ray.report.card import render_model_card
from eav_ray.report.table import list_sources
from eav_ray.runtime import cluster
from eav_ray.runtime.beside import (
    DAMAGED_FILE_ERRORS,
    AuditedCheckpoint,
    EvaluatedCheckpoint,
    collect_related,
    collect_searches,
    compare_protocols,
    is_recorded_eav,
)
from eav_ray.runtime.reproduce import collect_provenance
from eav_ray.runtime.score import ScoringTask, score_checkpoints
from eav_ray.runtime.train import Dataset, open_dataset
from eav_ray.storage import COMMIT, Store, sha256, split_store_path
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.audit import LeakAudit, WindowDigests, audit_checkpoint, audit_transfer
from eav_ray.training.run import subsample_evenly

MAX_TRAIN_RECORDINGS = 100  # recordings of the training side that are scored for the gap, of each checkpoint
MAX_BAND_WINDOWS = 4096  # that the band power of a page is taken of

ResultsTree = dict[str, Any]


@dataclass(frozen=True)
class PageInfo:
    """What the page is of."""

    title: str
    description: str
    separation: str  # what sets the tested recordings apart from those that were trained on
    protocol: str
    experiment: Experiment | None = None  # that stands for all checkpoints, where each was given changes of its own


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
        held: Predictions of validation recordings by models that never saw them, with a column `fold`; without it they
            are made of the checkpoints' own validation sides, where they have any.
    Returns:
        The path of the page.
    Raises:
        DataError: A checkpoint fails the audit.
    """
    results = Store(e.store.results)
    contents = WindowDigests(data.windows)

    def audit_fold(fold: EvaluatedCheckpoint) -> AuditedCheckpoint:
        # Whatever is reported is audited, whether or not it is what was said to be.
        reported = tuple(sorted({*fold.test_ids, *(fold.predictions["subject"] + "/" + fold.predictions["recording"])}))
        expected_experiment = page_info.experiment and replace(
            page_info.experiment, split=replace(page_info.experiment.split, index=fold.fold)
        )
        return open_audited(
            fold,
            lambda c: audit_checkpoint(c, contents, reported, read_encoder_train_ids(results, c), expected_experiment),
        )

    audited = [audit_fold(fold) for fold in evaluated]
    trained_experiment = page_info.experiment or audited[0].checkpoint.experiment
    modalities: list[str] = sorted(trained_experiment.data.modalities)
    predictions = pd.concat([f.predictions.assign(fold=f.fold) for f in evaluated], ignore_index=True)
    with cluster.connect_to_ray(e.runtime):
        train_predictions, validation_predictions = _score_train_and_validation(e, audited, data)
    tree = build_results(
        trained_experiment, trained_experiment, data, audited, page_info, predictions, modalities, data.index.classes
    )
    validation_predictions = out_of_fold if out_of_fold is not None else validation_predictions
    tree["calibration"] = calibration.summarize_calibration(
        predictions, list_sources(modalities), validation_predictions
    )
    tree["calibration_note"] = describe_temperature(validation_predictions, out_of_fold is not None)
    tree["gap"] = measure.compute_generalization_gap(predictions, train_predictions, modalities)
    skipped_results: list[str] = []
    tree |= compare_protocols(
        trained_experiment, results, data, page_info.protocol, predictions, modalities, skipped_results
    )
    search_sections, tree["search"] = collect_searches(results, audited, trained_experiment, skipped_results)
    return _write_page_files(tree | {"unread": skipped_results}, search_sections, results, audited, out)


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
        fold: Its predictions, labels and logits numbered by `classes`.
        names: The modalities that were shown.
        classes: Those that both sets have.
    Returns, raises: As `write`.
    """
    contents = WindowDigests(data.windows)

    def audit_transferred(checkpoint: ckpt.Checkpoint) -> LeakAudit:
        return audit_transfer(
            checkpoint, _load_training_contents(e, checkpoint), contents, evaluated.test_ids, modalities
        )

    audited = [open_audited(evaluated, audit_transferred)]
    predictions = evaluated.predictions.assign(fold=0)
    tree = build_results(
        audited[0].checkpoint.experiment, e, data, audited, page_info, predictions, modalities, classes
    )
    tree["calibration"] = calibration.summarize_calibration(predictions, list_sources(modalities), None)
    tree["calibration_note"] = "No temperature: the other data set has no rows to fit one on."
    return _write_page_files(tree, [], Store(e.store.results), [], out)


def _load_training_contents(e: Experiment, checkpoint: ckpt.Checkpoint) -> WindowDigests | None:
    """Of the data set that a checkpoint was trained on, where its shards lie where they did."""
    try:
        training_data = open_dataset(
            replace(checkpoint.experiment, store=replace(checkpoint.experiment.store, cache=e.store.cache))
        )
    except (ConfigError, DataError):
        return None
    return WindowDigests(training_data.windows) if checkpoint.data_digest in ("", training_data.digest) else None


def _write_page_files(
    tree: ResultsTree, extra_sections: list[str], results: Store, audited: list[AuditedCheckpoint], out: str
) -> str:
    skipped_results = list(tree.get("unread", []))
    related_sections, related_results = collect_related(results, audited, skipped_results)
    tree = measure.to_json_value(tree | related_results | {"unread": skipped_results})
    store, name = split_store_path(out)
    folder = store.open_substore(name)
    folder.write("results.json", json.dumps(tree, indent=1).encode())
    folder.write("model_card.md", render_model_card(tree).encode())
    folder.write("index.html", evidence.render_results_page(tree, [*related_sections, *extra_sections]).encode())
    return f"{folder}/index.html"


def open_audited(
    evaluated: EvaluatedCheckpoint, run_audit: Callable[[ckpt.Checkpoint], LeakAudit]
) -> AuditedCheckpoint:
    store, name = split_store_path(evaluated.path)
    checkpoint = ckpt.read_checkpoint(store, name)
    audit_result = run_audit(checkpoint)
    if not audit_result.passed:
        raise DataError(
            f"{evaluated.path} fails the leak audit, so there is no page of it: {audit_result.first_failure}; train it again on a "
            "split that holds"
        )
    n_parameters = sum(t.numel() for t in checkpoint.weights.values())
    run_key, commit_sha256 = str(store.read_json(f"{name}/state.json")["key"]), sha256(store.read(f"{name}/{COMMIT}"))
    return AuditedCheckpoint(
        evaluated,
        replace(checkpoint, weights={}, optimizer_state={}),
        n_parameters,
        audit_result,
        run_key,
        commit_sha256,
    )


def read_encoder_train_ids(results: Store, checkpoint: ckpt.Checkpoint) -> dict[str, tuple[str, ...]]:
    """Of each encoder that a fusion was trained on, and whose own run is in the store: what that was trained on."""
    found = {}
    for m, key in checkpoint.encoder_keys.items():
        for _, _, prefix in ckpt.list_checkpoints(results, key)[:1]:
            with contextlib.suppress(*DAMAGED_FILE_ERRORS):
                found[m] = tuple(results.read_json(f"{prefix}/split.json")["train"])
    return found


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
                ScoringTask(one.evaluated.path, tuple(map(str, sampled_ids)), allows_training_recordings=True),
            )
        )
        if split_.validation:
            fold_tasks.append((one.evaluated.fold, ScoringTask(one.evaluated.path, split_.validation)))
    scoring_experiment = replace(audited[0].checkpoint.experiment, store=e.store, runtime=e.runtime)
    tables = score_checkpoints(scoring_experiment, [task for _, task in fold_tasks], data.shards, data.index)
    train_tables, validation_tables = [], []
    for (number, task), table in zip(fold_tasks, tables, strict=True):
        if isinstance(table, str):
            raise DataError(table)
        (train_tables if task.allows_training_recordings else validation_tables).append(table.assign(fold=number))
    return pd.concat(train_tables, ignore_index=True), pd.concat(
        validation_tables, ignore_index=True
    ) if validation_tables else None


def build_results(
    trained_experiment: Experiment,
    tested_experiment: Experiment,
    data: Dataset,
    audited: list[AuditedCheckpoint],
    page_info: PageInfo,
    predictions: pd.DataFrame,
    modalities: list[str],
    classes: tuple[str, ...],
) -> ResultsTree:
    """What is said of any predictions.

    Args:
        own, tested: The experiment that the checkpoints are of, and the one that names the tested data.
        data: The tested data.
        classes: What labels and logits are numbered by.
    """
    accuracy = measure.summarize_accuracy(predictions, modalities, len(classes))
    low, high = statistics.compute_chance_band(max(1, accuracy["recordings"] // accuracy["people"]), len(classes))
    # The published fusion reads all three modalities: one of two is held against nothing.
    is_comparable = trained_experiment is tested_experiment and len(modalities) != 2
    published = (
        protocols.read_published_accuracy() if is_comparable and is_recorded_eav(trained_experiment, data) else None
    )
    checks = [{"fold": one.evaluated.fold, **check} for one in audited for check in one.audit.summary]
    train_ids = sorted({i for one in audited for i in one.checkpoint.split.train})
    train_subjects = {i.split("/")[0] for i in train_ids}
    is_adapted = audited[0].checkpoint.split.protocol == "calibrated"
    earlier_training = "the training side of its fold, then " if is_adapted else ""
    subject_scores, quality = (
        measure.summarize_subjects(predictions, modalities, published),
        _average_quality(data, predictions),
    )
    return {
        "format": evidence.RESULTS_FORMAT,
        "title": page_info.title,
        "about": page_info.description,
        "apart": page_info.separation,
        "protocol": page_info.protocol,
        "modalities": modalities,
        "classes": list(classes),
        "experiment": to_dict(trained_experiment),
        "model": {
            "Tensors": f"{audited[0].n_parameters:,} numbers",
            "Encoders": ", ".join(
                f"{m}: {getattr(getattr(trained_experiment.model, m), 'kind', 'vit')}"
                for m in sorted(trained_experiment.data.modalities)
            ),
            "Fusion": trained_experiment.fusion.kind if len(trained_experiment.data.modalities) > 1 else "none",
        },
        "data": {
            "Trained on": f"{trained_experiment.data.dataset}, {earlier_training}{len(train_ids)} recordings of {len(train_subjects)} people",
            "Tested on": f"{tested_experiment.data.dataset}, {accuracy['recordings']} recordings of {accuracy['people']} people",
            "Labels": tested_experiment.data.labels,
            "Shards that were tested": f"{data.index.key}, content {digest(data.index.fingerprint)}",
        },
        "accuracy": accuracy,
        "chance_of_person": {"level": 1 / len(classes), "low": low, "high": high},
        "people": subject_scores,
        "comparisons": measure.compare_sources(predictions, modalities),
        "confusion": measure.count_confusions(predictions, modalities, len(classes)),
        "weights": measure.summarize_modality_weights(predictions, modalities, classes),
        "collapse": [
            {"fold": one.evaluated.fold, **finding}
            for one in audited
            for finding in one.checkpoint.metrics.get("collapse", [])
        ],
        "histories": {
            str(one.evaluated.fold): found
            for one in audited
            if (found := _collect_histories(one.checkpoint.metrics, trained_experiment))
        },
        "quality": measure.correlate_signal_quality(predictions, quality, modalities),
        "worst": measure.summarize_worst_subjects(subject_scores, predictions, quality, classes),
        "bands": _compute_band_power(tested_experiment, data, predictions) if "eeg" in modalities else None,
        "folds": [
            {
                "fold": one.evaluated.fold,
                "run": one.run_key,
                "checkpoint": one.evaluated.path,
                "test": list(one.evaluated.test_ids),
            }
            for one in audited
        ],
        "audit": {"checks": checks, "sha256": sha256(json.dumps(checks, sort_keys=True).encode())},
        "reproduce": collect_provenance(trained_experiment, data.index),
    }


def _collect_histories(metrics: dict[str, Any], experiment: Experiment) -> ResultsTree:
    """Part of the model -> what was measured after each epoch of its training."""
    names = experiment.data.modalities
    last_part = names[0] if len(names) == 1 else "fusion"
    found = {**metrics.get("histories", {}), last_part: metrics.get("history", [])}
    return {part: history for part, history in found.items() if history}


def describe_temperature(predictions: pd.DataFrame | None, out_of_fold: bool) -> str:
    if predictions is None:
        return (
            "No temperature: this split has no validation rows. --temperature trains the inner folds of the training "
            "people and takes it from their predictions."
        )
    source = "of its inner folds" if out_of_fold else "of its validation side"
    sentence = f"Each model has a temperature {source}, {len(predictions)} windows in all"
    return f"{sentence}: never of recordings that it is tested on."


def _average_quality(data: Dataset, predictions: pd.DataFrame) -> pd.DataFrame:
    """What preprocessing measured of the tested recordings: `subject`, `recording`, means of the shards' columns."""
    columns = [c for m in data.index.modalities for c in QUALITY_COLUMNS[m]]
    facts = data.windows.read_columns(columns)
    ids = data.windows.ids[["subject", "recording"]]
    found = pd.concat([ids, facts], axis=1).groupby(["subject", "recording"], as_index=False).mean()
    tested_recordings = predictions[["subject", "recording"]].drop_duplicates()
    return found.merge(tested_recordings, on=["subject", "recording"]).dropna(axis=1, how="all")


def _compute_band_power(tested_experiment: Experiment, data: Dataset, predictions: pd.DataFrame) -> ResultsTree | None:
    """Band power of the tested recordings by class, less each person's mean over classes."""
    items = {
        i.id: i.label for i in list_labeled_recordings(data.windows.ids, tested_experiment.data, tested_experiment.seed)
    }
    rows = data.windows.find_rows(tuple(set(predictions["subject"] + "/" + predictions["recording"])))
    rows = subsample_evenly(rows[data.windows.ids["has_eeg"].to_numpy()[rows]], MAX_BAND_WINDOWS)
    if not len(rows):
        return None
    parts = [
        compute_band_power(data.windows.get(rows[at : at + 256], "eeg"), tested_experiment.preprocessing.eeg.hz)
        for at in range(0, len(rows), 256)
    ]
    power_BCF = np.concatenate(parts)
    ids = data.windows.ids.iloc[rows]
    keys = pd.MultiIndex.from_arrays([ids["subject"], ids["id"].map(items)], names=["subject", "label"])
    table = pd.DataFrame(power_BCF.reshape(len(rows), -1), index=keys).groupby(["subject", "label"]).mean()
    relative = table - table.groupby("subject").transform("mean")
    mean = relative.groupby("label").mean()
    shape = power_BCF.shape[1:]
    values = {
        data.index.classes[int(k)]: dict(
            zip(FREQUENCY_BANDS, np.nan_to_num(row.reshape(shape)).T.tolist(), strict=True)
        )
        for k, row in zip(mean.index, mean.to_numpy(), strict=True)
    }
    channels = data.shards.read_json(INDEX_FILE).get("channels") or (
        EAV_CHANNELS if tested_experiment.data.dataset == "eav" else ()
    )
    if len(channels) != shape[0]:
        return None
    return {"channels": list(channels), "values": values, "people": int(ids["subject"].nunique())}

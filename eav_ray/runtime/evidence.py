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
    DAMAGED,
    AuditedCheckpoint,
    EvaluatedCheckpoint,
    collect_related,
    compare_protocols,
    of_searches,
    recorded_eav,
)
from eav_ray.runtime.reproduce import reproduction
from eav_ray.runtime.score import ScoringTask, score_checkpoints
from eav_ray.runtime.train import Dataset, open_dataset
from eav_ray.storage import COMMIT, Store, sha256, split_store_path
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.audit import LeakAudit, WindowDigests, audit_checkpoint, audit_transfer
from eav_ray.training.run import subsample_evenly

TRAINED = 100  # recordings of the training side that are scored for the gap, of each checkpoint
BAND_WINDOWS = 4096  # that the band power of a page is taken of

Tree = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What the page is of."""

    title: str
    about: str
    apart: str  # what sets the tested recordings apart from those that were trained on
    protocol: str
    own: Experiment | None = None  # that stands for all checkpoints, where each was given changes of its own


def write(
    e: Experiment,
    data: Dataset,
    folds: Sequence[EvaluatedCheckpoint],
    subject: Subject,
    out: str,
    held: pd.DataFrame | None = None,
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

    def checked(fold: EvaluatedCheckpoint) -> AuditedCheckpoint:
        # Whatever is reported is audited, whether or not it is what was said to be.
        scored = tuple(sorted({*fold.test, *(fold.windows["subject"] + "/" + fold.windows["recording"])}))
        asked = subject.own and replace(subject.own, fold=replace(subject.own.split, index=fold.number))
        return _open(fold, lambda c: audit_checkpoint(c, contents, scored, _trained_on(results, c), asked))

    audited = [checked(fold) for fold in folds]
    own = subject.own or audited[0].checkpoint.experiment
    names: list[str] = sorted(own.data.modalities)
    windows = pd.concat([f.windows.assign(fold=f.number) for f in folds], ignore_index=True)
    with cluster.connect_to_ray(e.runtime):
        trained, validation = _more(e, audited, data)
    tree = _tree(own, own, data, audited, subject, windows, names, data.index.classes)
    validation = held if held is not None else validation
    tree["calibration"] = calibration.summarize_calibration(windows, list_sources(names), validation)
    tree["calibration_note"] = _temperature_note(validation, held is not None)
    tree["gap"] = measure.compute_generalization_gap(windows, trained, names)
    skipped_results: list[str] = []
    tree |= compare_protocols(own, results, data, subject.protocol, windows, names, skipped_results)
    extra, tree["search"] = of_searches(results, audited, own, skipped_results)
    return _publish(tree | {"unread": skipped_results}, extra, results, audited, out)


def write_transfer(
    e: Experiment,
    data: Dataset,
    evaluated: EvaluatedCheckpoint,
    names: list[str],
    classes: tuple[str, ...],
    subject: Subject,
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

    def audited(checkpoint: ckpt.Checkpoint) -> LeakAudit:
        return audit_transfer(checkpoint, _own_windows(e, checkpoint), contents, evaluated.test, names)

    audited = [_open(evaluated, audited)]
    windows = evaluated.windows.assign(fold=0)
    tree = _tree(audited[0].checkpoint.experiment, e, data, audited, subject, windows, names, classes)
    tree["calibration"] = calibration.summarize_calibration(windows, list_sources(names), None)
    tree["calibration_note"] = "No temperature: the other data set has no rows to fit one on."
    return _publish(tree, [], Store(e.store.results), [], out)


def _own_windows(e: Experiment, checkpoint: ckpt.Checkpoint) -> WindowDigests | None:
    """Of the data set that a checkpoint was trained on, where its shards lie where they did."""
    try:
        own = open_dataset(
            replace(checkpoint.experiment, store=replace(checkpoint.experiment.store, cache=e.store.cache))
        )
    except (ConfigError, DataError):
        return None
    return WindowDigests(own.windows) if checkpoint.data_digest in ("", own.digest) else None


def _publish(tree: Tree, extra: list[str], results: Store, audited: list[AuditedCheckpoint], out: str) -> str:
    skipped_results = list(tree.get("unread", []))
    more, found = collect_related(results, audited, skipped_results)
    tree = measure.to_json_value(tree | found | {"unread": skipped_results})
    store, name = split_store_path(out)
    folder = store.open_substore(name)
    folder.write("results.json", json.dumps(tree, indent=1).encode())
    folder.write("model_card.md", render_model_card(tree).encode())
    folder.write("index.html", evidence.render_results_page(tree, [*more, *extra]).encode())
    return f"{folder}/index.html"


def _open(evaluated: EvaluatedCheckpoint, audited: Callable[[ckpt.Checkpoint], LeakAudit]) -> AuditedCheckpoint:
    store, name = split_store_path(evaluated.path)
    checkpoint = ckpt.read_checkpoint(store, name)
    found = audited(checkpoint)
    if not found.passed:
        raise DataError(
            f"{evaluated.path} fails the leak audit, so there is no page of it: {found.first_failure}; train it again on a "
            "split that holds"
        )
    parameters = sum(t.numel() for t in checkpoint.weights.values())
    key, commit = str(store.read_json(f"{name}/state.json")["key"]), sha256(store.read(f"{name}/{COMMIT}"))
    return AuditedCheckpoint(evaluated, replace(checkpoint, weights={}, moments={}), parameters, found, key, commit)


def _trained_on(results: Store, checkpoint: ckpt.Checkpoint) -> dict[str, tuple[str, ...]]:
    """Of each encoder that a fusion was trained on, and whose own run is in the store: what that was trained on."""
    found = {}
    for m, key in checkpoint.encoder_keys.items():
        for _, _, prefix in ckpt.list_checkpoints(results, key)[:1]:
            with contextlib.suppress(*DAMAGED):
                found[m] = tuple(results.read_json(f"{prefix}/split.json")["train"])
    return found


def _more(e: Experiment, audited: list[AuditedCheckpoint], data: Dataset) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Predictions of some recordings of the training sides, and of the validation sides where there are any.

    Of the kind that is tested: listening recordings, which are only ever trained on, would make another gap.
    """
    sides: list[tuple[int, ScoringTask]] = []
    ids = data.windows.ids
    heard = set(ids["id"][ids["task"] != LISTENING])
    for one in audited:
        split_ = one.evaluated.split or one.checkpoint.split
        some = subsample_evenly(np.array([i for i in split_.train if i in heard] or split_.train), TRAINED)
        sides.append(
            (
                one.evaluated.number,
                ScoringTask(one.evaluated.path, tuple(map(str, some)), allows_training_recordings=True),
            )
        )
        if split_.validation:
            sides.append((one.evaluated.number, ScoringTask(one.evaluated.path, split_.validation)))
    own = replace(audited[0].checkpoint.experiment, store=e.store, runtime=e.runtime)
    tables = score_checkpoints(own, [task for _, task in sides], data.shards, data.index)
    trained, validation = [], []
    for (number, task), table in zip(sides, tables, strict=True):
        if isinstance(table, str):
            raise DataError(table)
        (trained if task.allows_training_recordings else validation).append(table.assign(fold=number))
    return pd.concat(trained, ignore_index=True), pd.concat(validation, ignore_index=True) if validation else None


def _tree(
    own: Experiment,
    tested_experiment: Experiment,
    data: Dataset,
    audited: list[AuditedCheckpoint],
    subject: Subject,
    windows: pd.DataFrame,
    names: list[str],
    classes: tuple[str, ...],
) -> Tree:
    """What is said of any predictions.

    Args:
        own, tested: The experiment that the checkpoints are of, and the one that names the tested data.
        data: The tested data.
        classes: What labels and logits are numbered by.
    """
    accuracy = measure.summarize_accuracy(windows, names, len(classes))
    low, high = statistics.compute_chance_band(max(1, accuracy["recordings"] // accuracy["people"]), len(classes))
    # The published fusion reads all three modalities: one of two is held against nothing.
    same = own is tested_experiment and len(names) != 2
    published = protocols.read_published_accuracy() if same and recorded_eav(own, data) else None
    checks = [{"fold": one.evaluated.number, **check} for one in audited for check in one.audit.summary]
    trained = sorted({i for one in audited for i in one.checkpoint.split.train})
    trainers = {i.split("/")[0] for i in trained}
    calibrated = audited[0].checkpoint.split.protocol == "calibrated"
    before = "the training side of its fold, then " if calibrated else ""
    subject_scores, measured = measure.summarize_subjects(windows, names, published), _quality(data, windows)
    return {
        "format": evidence.RESULTS_FORMAT,
        "title": subject.title,
        "about": subject.about,
        "apart": subject.apart,
        "protocol": subject.protocol,
        "modalities": names,
        "classes": list(classes),
        "experiment": to_dict(own),
        "model": {
            "Tensors": f"{audited[0].parameters:,} numbers",
            "Encoders": ", ".join(
                f"{m}: {getattr(getattr(own.model, m), 'kind', 'vit')}" for m in sorted(own.data.modalities)
            ),
            "Fusion": own.fusion.kind if len(own.data.modalities) > 1 else "none",
        },
        "data": {
            "Trained on": f"{own.data.dataset}, {before}{len(trained)} recordings of {len(trainers)} people",
            "Tested on": f"{tested_experiment.data.dataset}, {accuracy['recordings']} recordings of {accuracy['people']} people",
            "Labels": tested_experiment.data.labels,
            "Shards that were tested": f"{data.index.key}, content {digest(data.index.fingerprint)}",
        },
        "accuracy": accuracy,
        "chance_of_person": {"level": 1 / len(classes), "low": low, "high": high},
        "people": subject_scores,
        "comparisons": measure.compare_sources(windows, names),
        "confusion": measure.count_confusions(windows, names, len(classes)),
        "weights": measure.summarize_modality_weights(windows, names, classes),
        "collapse": [
            {"fold": one.evaluated.number, **finding}
            for one in audited
            for finding in one.checkpoint.metrics.get("collapse", [])
        ],
        "histories": {
            str(one.evaluated.number): found for one in audited if (found := _histories(one.checkpoint.metrics, own))
        },
        "quality": measure.correlate_signal_quality(windows, measured, names),
        "worst": measure.summarize_worst_subjects(subject_scores, windows, measured, classes),
        "bands": _bands(tested_experiment, data, windows) if "eeg" in names else None,
        "folds": [
            {
                "fold": one.evaluated.number,
                "run": one.key,
                "checkpoint": one.evaluated.path,
                "test": list(one.evaluated.test),
            }
            for one in audited
        ],
        "audit": {"checks": checks, "sha256": sha256(json.dumps(checks, sort_keys=True).encode())},
        "reproduce": reproduction(own, data.index),
    }


def _histories(metrics: dict[str, Any], own: Experiment) -> Tree:
    """Part of the model -> what was measured after each epoch of its training."""
    names = own.data.modalities
    last = names[0] if len(names) == 1 else "fusion"
    found = {**metrics.get("histories", {}), last: metrics.get("history", [])}
    return {part: history for part, history in found.items() if history}


def _temperature_note(validation: pd.DataFrame | None, inner: bool) -> str:
    if validation is None:
        return (
            "No temperature: this split has no validation rows. --temperature trains the inner folds of the training "
            "people and takes it from their predictions."
        )
    of = "of its inner folds" if inner else "of its validation side"
    sentence = f"Each model has a temperature {of}, {len(validation)} windows in all"
    return f"{sentence}: never of recordings that it is tested on."


def _quality(data: Dataset, windows: pd.DataFrame) -> pd.DataFrame:
    """What preprocessing measured of the tested recordings: `subject`, `recording`, means of the shards' columns."""
    columns = [c for m in data.index.modalities for c in QUALITY_COLUMNS[m]]
    facts = data.windows.read_columns(columns)
    ids = data.windows.ids[["subject", "recording"]]
    found = pd.concat([ids, facts], axis=1).groupby(["subject", "recording"], as_index=False).mean()
    tested_recordings = windows[["subject", "recording"]].drop_duplicates()
    return found.merge(tested_recordings, on=["subject", "recording"]).dropna(axis=1, how="all")


def _bands(tested_experiment: Experiment, data: Dataset, windows: pd.DataFrame) -> Tree | None:
    """Band power of the tested recordings by class, less each person's mean over classes."""
    items = {
        i.id: i.label for i in list_labeled_recordings(data.windows.ids, tested_experiment.data, tested_experiment.seed)
    }
    rows = data.windows.find_rows(tuple(set(windows["subject"] + "/" + windows["recording"])))
    rows = subsample_evenly(rows[data.windows.ids["has_eeg"].to_numpy()[rows]], BAND_WINDOWS)
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

"""Compute the results that a results page shows."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from eav_ray.config import Experiment, digest, to_dict
from eav_ray.data.modalities.band_power import FREQUENCY_BANDS, compute_band_power
from eav_ray.data.modalities.registry import get_modality
from eav_ray.data.shards.dataset import Dataset
from eav_ray.data.splits import list_labeled_recordings
from eav_ray.evaluation import protocol_comparison
from eav_ray.evaluation.leak_audit.checks import count_outcomes
from eav_ray.evaluation.single_class import describe_single_class, find_single_classes
from eav_ray.pipelines.evaluate.audited_checkpoint import AuditedCheckpoint
from eav_ray.pipelines.evaluate.page_scores import PageScores
from eav_ray.pipelines.evaluate.provenance import collect_provenance
from eav_ray.pipelines.evaluate.related_results import is_recorded_eav
from eav_ray.reporting import results_page
from eav_ray.storage import sha256
from eav_ray.storage.published_weights import list_starting_weights
from eav_ray.training.access import describe_access
from eav_ray.training.checkpoint_files import STARTING_WEIGHTS
from eav_ray.training.dataloader import subsample_evenly
from eav_ray.training.metrics import RECORDING_COLUMNS
from eav_ray.words import format_recordings

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


def build_results(
    trained_experiment: Experiment,
    tested_experiment: Experiment,
    data: Dataset,
    audited: list[AuditedCheckpoint],
    page_info: PageInfo,
    predictions: pd.DataFrame,
    modalities: list[str],
    scores: PageScores,
) -> ResultsTree:
    """What is said of any predictions.

    Args:
        trained_experiment, tested_experiment: The experiment that the checkpoints are of, and the one that names the
            tested data.
        data: The tested data.
        predictions: With all sources (`PageScores.prepare`).
        scores: How they are scored.
    """
    # The published fusion reads all three modalities: one of two is held against nothing.
    is_comparable = trained_experiment is tested_experiment and len(modalities) != 2
    published = (
        protocol_comparison.read_published_accuracy()
        if is_comparable and is_recorded_eav(trained_experiment, data)
        else None
    )
    checks = [{"fold": one.evaluated.fold, **check} for one in audited for check in one.audit.summary]
    train_ids = sorted({i for one in audited for i in one.checkpoint.split.train})
    train_subjects = {i.split("/")[0] for i in train_ids}
    is_adapted = audited[0].checkpoint.split.protocol == "adapted"
    earlier_training = "the training side of its fold, then " if is_adapted else ""
    access = describe_access(trained_experiment, audited[0].checkpoint.split.protocol)
    scored = scores.summarize(predictions, published)
    has_band_power = "eeg" in modalities and not data.index.targets  # it is shown by class
    tested = predictions[RECORDING_COLUMNS].drop_duplicates()
    return {
        "format": results_page.RESULTS_FORMAT,
        "title": page_info.title,
        "description": page_info.description,
        "separation": page_info.separation,
        "protocol": page_info.protocol,
        "access": {"level": trained_experiment.split.access, "description": access},
        "modalities": modalities,
        **scores.name_outputs(),
        "experiment": to_dict(trained_experiment),
        "model": {
            "Tensors": f"{audited[0].n_parameters:,} numbers",
            "Encoders": ", ".join(
                f"{m}: {getattr(trained_experiment.model[m], 'kind', 'vit')}"
                for m in sorted(trained_experiment.data.modalities)
            ),
            "Fusion": trained_experiment.fusion.kind if len(trained_experiment.data.modalities) > 1 else "none",
            "Starts from": "; ".join(list_starting_weights(audited[0].checkpoint.metrics.get(STARTING_WEIGHTS, {})))
            or "random values",
        },
        "data": {
            "Trained on": (
                f"{trained_experiment.data.dataset}, {earlier_training}"
                f"{format_recordings(len(train_ids), len(train_subjects))}"
            ),
            "Tested on": (
                f"{tested_experiment.data.dataset}, {format_recordings(len(tested), tested['subject'].nunique())}"
            ),
            "Labels": tested_experiment.data.labels,
            "Access to tested subjects": access,
            "Shards that were tested": f"{data.index.key}, content {digest(data.index.fingerprint)}",
        },
        **scored,
        "single_class": [
            {
                "fold": found.fold,
                "text": describe_single_class(found, scores.name_outputs()["classes"], trained_experiment),
            }
            for found in find_single_classes(predictions, [*modalities, *(["fusion"] if len(modalities) > 1 else [])])
        ],
        "modality_collapse": [
            {"fold": one.evaluated.fold, **finding}
            for one in audited
            for finding in one.checkpoint.metrics.get("modality_collapse", [])
        ],
        "histories": {
            str(one.evaluated.fold): found
            for one in audited
            if (found := _collect_histories(one.checkpoint.metrics, trained_experiment))
        },
        **scores.summarize_signals(scored, predictions, _average_quality(data, predictions)),
        "band_power": _compute_band_power(tested_experiment, data, predictions) if has_band_power else None,
        "folds": [
            {
                "fold": one.evaluated.fold,
                "run": one.checkpoint.key,
                "checkpoint": one.checkpoint.path,
                "commit_sha256": one.checkpoint.commit_sha256,
                "test": list(one.evaluated.test_ids),
            }
            for one in audited
        ],
        "audit": {
            "checks": checks,
            "outcomes": count_outcomes(str(check["outcome"]) for check in checks),
            "sha256": sha256(json.dumps([one.audit.sha256 for one in audited]).encode()),
        },
        "provenance": collect_provenance(trained_experiment, data.index),
    }


def _collect_histories(metrics: dict[str, Any], experiment: Experiment) -> ResultsTree:
    """Part of the model -> what was measured after each epoch of its training."""
    names = experiment.data.modalities
    last_part = names[0] if len(names) == 1 else "fusion"
    found = {**metrics.get("histories", {}), last_part: metrics.get("history", [])}
    return {part: history for part, history in found.items() if history}


def _average_quality(data: Dataset, predictions: pd.DataFrame) -> pd.DataFrame:
    """What preprocessing measured of the tested recordings: `subject`, `recording`, means of the shards' columns."""
    columns = [c for m in data.index.modalities for c in get_modality(m).quality_columns]
    facts = data.windows.read_columns(columns)
    ids = data.windows.ids[RECORDING_COLUMNS]
    found = pd.concat([ids, facts], axis=1).groupby(RECORDING_COLUMNS, as_index=False).mean()
    tested_recordings = predictions[RECORDING_COLUMNS].drop_duplicates()
    return found.merge(tested_recordings, on=RECORDING_COLUMNS).dropna(axis=1, how="all")


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
    channels = data.index.eeg_channel_names
    if len(channels) != shape[0]:
        return None
    return {"channels": list(channels), "values": values, "n_subjects": int(ids["subject"].nunique())}

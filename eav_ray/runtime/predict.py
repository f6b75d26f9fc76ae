"""A checkpoint at work: on the test rows of its split, once, or through Ray Data on recordings that it never saw."""

from dataclasses import asdict, replace
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
import ray
import ray.data
import torch

from eav_ray.config import Experiment, Modality, Profile
from eav_ray.data import sets
from eav_ray.data.shard import Index, as_decoded, as_stored, window_shapes
from eav_ray.data.split import check, items_of
from eav_ray.data.windows import cut
from eav_ray.errors import ConfigError, DataError
from eav_ray.models.build import Shapes
from eav_ray.report.progress import Bar, stage
from eav_ray.runtime import cluster, eeg_stage
from eav_ray.runtime.preprocess import require_extras
from eav_ray.runtime.score import Task, score
from eav_ray.storage import Store, split
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.run import empty_frame, to_frame

BATCH = 32
UNIT = 8  # recordings that one task reads


def open_checkpoint(path: str) -> ckpt.Checkpoint:
    """A checkpoint by the path that `pull` or `train` printed: a folder, or `s3://.../runs/<key>/a0000/e0010-s000000`.

    Raises:
        DataError: There is none, it is not finished, or a file is damaged.
    """
    store, name = split(path)
    checkpoint = ckpt.load(store, name)
    if not checkpoint.finished:
        raise DataError(f"{path} is from the middle of a training; the command that trained it continues it")
    return checkpoint


def evaluate(experiment: Experiment, path: str, shards: Store, index: Index, labels: pd.DataFrame) -> pd.DataFrame:
    """Predictions for the test rows of a checkpoint's own split, computed once and kept.

    Args:
        labels: The ids of all stored windows (`Windows.ids`).
    Raises:
        ConfigError: No test rows, the split leaks, or the experiment's windows are not those of the checkpoint.
        DataError: The shards hold other classes, or one is damaged.
    """
    store, prefix = split(path)
    checkpoint = open_checkpoint(path)
    check_windows(experiment, checkpoint, index, path)
    tested = checkpoint.split
    if not tested.test:
        raise ConfigError(f"{path} was trained on an inner fold, which has no test rows; evaluate the refit checkpoint")
    items = items_of(labels, checkpoint.experiment.data, checkpoint.experiment.seed)
    check(tested, items)
    # One worker, as its batches must not matter here; scoring takes all that there is room for.
    runtime = replace(experiment.runtime, workers=1)
    own = replace(checkpoint.experiment, store=experiment.store, runtime=runtime)
    (table,) = score(own, [Task(f"{store}/{prefix}", tested.test)], shards, index)
    if isinstance(table, str):
        raise DataError(table)
    return table


def check_windows(experiment: Experiment, checkpoint: ckpt.Checkpoint, index: Index, path: str) -> None:
    """A checkpoint is worth what it is worth on windows that were made as its training windows were."""
    sections = ("window_s", *checkpoint.experiment.data.modalities)
    mine, theirs = (
        to_flat({k: v for k, v in asdict(e.profile).items() if k in sections})
        for e in (experiment, checkpoint.experiment)
    )
    other = [f"profile.{k}={theirs[k]} there, {mine[k]} here" for k in theirs if mine.get(k) != theirs[k]]
    if other:
        raise ConfigError(f"{path} was trained with another profile ({'; '.join(other)}); give the same one")
    if index.classes != checkpoint.classes:
        raise DataError(
            f"{path} was trained on the classes {', '.join(checkpoint.classes)}, but these shards hold "
            f"{', '.join(index.classes)}; evaluate it on a data set with the same classes"
        )


def check_channels(experiment: Experiment, checkpoint: ckpt.Checkpoint, n_chans: int, path: str) -> None:
    if n_chans != checkpoint.shapes.eeg_channels:
        raise DataError(
            f"{experiment.data.root} has {n_chans} EEG channels, but {path} was trained on "
            f"{checkpoint.shapes.eeg_channels}; use recordings of the same montage"
        )


def predict(experiment: Experiment, path: str) -> tuple[pd.DataFrame, list[str]]:
    """Predictions for raw recordings, with the preprocessing that the checkpoint was trained with.

    Args:
        experiment: The checkpoint's own, with `data` changed to where the new recordings are.
    Returns:
        One row a window, and a line for each recording that could not be read.
    """
    store, prefix = split(path)
    checkpoint = open_checkpoint(path)
    modalities = checkpoint.experiment.data.modalities
    unknown = [m for m in experiment.data.modalities if m not in modalities]
    if unknown:
        raise ConfigError(
            f"data.modalities names {', '.join(unknown)}, but {path} was trained on {', '.join(modalities)}; name some "
            "of these"
        )
    dataset, listing = sets.scan(experiment.data)
    if "eeg" in experiment.data.modalities:
        check_channels(experiment, checkpoint, sets.eeg_channels(dataset, listing), path)
    # Modalities that are not wanted are missing ones to the model, which knows what to do without them.
    unwanted = dict.fromkeys(m for m in modalities if m not in experiment.data.modalities)
    recordings = [replace(r, **unwanted) for r in listing.recordings]
    if not recordings:
        raise DataError(f"there is nothing to predict in {experiment.data.root}; run jobs/check.py to see why")
    require_extras(experiment)
    failed = [f"{p.subject} {p.recording} {p.file}: {p.reason}" for p in listing.problems]
    with cluster.session(experiment.runtime), stage("predict", len(recordings), "recordings") as bar:
        cluster.prepare_ray_data()
        profile = checkpoint.experiment.profile
        units = [
            tuple(part[i : i + UNIT])
            for part in (list(g) for _, g in groupby(recordings, key=lambda r: r.subject))
            for i in range(0, len(part), UNIT)
        ]
        work = partial(_windows, units=units, profile=profile, modalities=modalities, shapes=checkpoint.shapes)
        rows = eeg_stage.retried(eeg_stage.units(experiment.data, profile, units).flat_map, work, num_cpus=1)
        table = _collect(_predicted(rows, f"{store}/{prefix}", experiment), bar, len(recordings))
    # Names, as the numbers are of these recordings' classes and not of the checkpoint's.
    table["label"] = np.array(dataset.classes)[table["label"].astype(int)]
    bad = table[table["reason"] != ""]
    failed += [f"{row['subject']} {row['recording']}: {row['reason']}" for _, row in bad.iterrows()]
    return table[table["reason"] == ""].drop(columns="reason").reset_index(drop=True), failed


def _predicted(rows: ray.data.Dataset, path: str, experiment: Experiment) -> ray.data.Dataset:
    runtime = experiment.runtime
    # Predicting is short: an actor that died is an error, and the same command starts anew.
    return eeg_stage.retried(
        rows.map_batches,
        _Predict,
        retries=0,
        fn_constructor_args=(path, runtime.cpus_per_worker),
        batch_size=BATCH,
        num_cpus=runtime.cpus_per_worker,
        num_gpus=runtime.gpus_per_worker or None,
        compute=ray.data.ActorPoolStrategy(size=1),
    )


def _collect(rows: ray.data.Dataset, bar: Bar, total: int) -> pd.DataFrame:
    parts: list[pd.DataFrame] = []
    seen: set[tuple[str, str]] = set()
    for batch in rows.iter_batches(batch_size=None, batch_format="pandas"):
        assert isinstance(batch, pd.DataFrame)
        if not len(batch):
            continue
        parts.append(batch)
        seen |= set(zip(batch["subject"], batch["recording"], strict=True))
        bar.to(min(len(seen), total))
    if not parts:
        raise DataError("there is nothing to predict: no recording with any of the modalities of the checkpoint")
    table = pd.concat(parts, ignore_index=True)
    # A batch in which nothing could be read has no numbers, and makes a column of objects of them all.
    numbers = [c for c in table.columns if "logit_" in c or c.startswith(("weight.", "corrected."))]
    table[numbers] = table[numbers].astype(float)
    return table.sort_values(["subject", "recording", "window"], ignore_index=True)


def _windows(
    row: dict[str, Any],
    *,
    units: list[eeg_stage.Unit],
    profile: Profile,
    modalities: tuple[Modality, ...],
    shapes: Shapes,
) -> list[dict[str, Any]]:
    """Raw recordings to windows, as a shard would hold them. What cannot be read becomes a row that says why."""
    prepared, found = eeg_stage.unpack(row), []
    names = ["subject", "recording", "window", "label", *modalities, *(f"has_{m}" for m in modalities)]
    for recording in units[row["unit"]]:
        eeg = prepared.get(recording.recording)
        made = cut(recording, profile, modalities, prepared=eeg, eeg_channels=shapes.eeg_channels)
        for w in made.windows:
            kept = as_stored(w, profile)
            found.append({name: kept[name] for name in names} | {"reason": ""})
        for problem in made.problems:
            empty: dict[str, Any] = {"subject": recording.subject, "recording": recording.recording}
            for m, (shape, dtype) in window_shapes(profile, shapes.eeg_channels).items():
                if m in modalities:
                    empty |= {m: np.zeros(shape, dtype.to_pandas_dtype()), f"has_{m}": False}
            row_of = as_stored(empty, profile) | {"window": 0, "label": recording.label, "reason": problem.reason}
            found.append(row_of)
    return found


def to_flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections to dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= to_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


class _Predict:
    """An actor: one loaded checkpoint, batch after batch."""

    def __init__(self, path: str, threads: float) -> None:
        torch.set_num_threads(max(1, int(threads)))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        checkpoint = open_checkpoint(path)
        self.profile = checkpoint.experiment.profile
        self.model = ckpt.load_model(checkpoint).to(self.device).eval()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = self.model.names
        ids = pd.DataFrame({c: batch[c] for c in ("subject", "recording", "window", "label")})
        present = np.stack([batch[f"has_{m}"] for m in names], 1)
        keep = np.asarray(present.any(1))
        inputs = {m: torch.from_numpy(self._decoded(m, batch[m][keep])).to(self.device) for m in names}
        table = empty_frame(names, self.model.n_outputs)
        if keep.any():
            with torch.no_grad():
                output = self.model(inputs, torch.from_numpy(present[keep]).to(self.device))
            table = to_frame(
                output, ids.iloc[np.flatnonzero(keep)], present[keep], names, ids["label"].to_numpy()[keep]
            )
        if "reason" in batch:
            bad = ids.iloc[np.flatnonzero(~keep)].assign(reason=batch["reason"][~keep])
            table = pd.concat([table.assign(reason=""), bad], ignore_index=True)
        return {str(c): table[c].to_numpy() for c in table.columns}

    def _decoded(self, modality: str, values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(as_decoded(values, self.profile) if modality == "video" else values)

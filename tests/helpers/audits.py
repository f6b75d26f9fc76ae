"""Checkpoints whose statistics are of their training rows, and how one may leak."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from eav_ray.config import Experiment, load_experiment
from eav_ray.data.shards import index as shards_index
from eav_ray.data.shards import schema, tables
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import list_labeled_recordings, make_split
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes
from eav_ray.storage import Store, list_package_versions, sha256
from eav_ray.training.checkpoint_files import Checkpoint
from eav_ray.training.statistics import fit_model_statistics
from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.paths import DEMO

PEOPLE, RECORDINGS = 4, 8


def make_experiment(protocol: str = "loso") -> Experiment:
    changes = {"data.modalities": ["audio", "eeg"], "model.audio.kind": "mfcc", "model.eeg.kind": "bandpower"}
    changes |= {"split.protocol": protocol, "split.n_inner_folds": 2, "split.index": 1, "train.mode": "end_to_end"}
    return load_experiment(DEMO, changes)


def store_windows(
    folder: Path,
    twin: tuple[int, int] | None = None,
    silent: bool = False,
    without: tuple[int, ...] = (),
    equal: bool = False,
) -> WindowCache:
    """Noise of people who differ in loudness, a window a recording.

    Args:
        twin: Numbers of two windows, of which the second has the first one's EEG.
        silent: All audio is digital silence, which is equal everywhere and no leak.
        without: Numbers of windows that have no EEG.
        equal: All windows are one.
    """
    rng, rows, e = np.random.default_rng(0), [], make_experiment()
    for n in range(PEOPLE * RECORDINGS):
        subject, k = divmod(n, RECORDINGS)
        row = {"subject": f"p{subject}", "recording": f"{k:03d}", "window": 0, "label": k % 2, "task": "", "order": k}
        row |= {"has_audio": True, "has_eeg": n not in without, "audio_seconds": 5.0, "eeg_seconds": 5.0}
        row |= {"eeg_bad_channels": subject, "audio_db": 0.0, "audio_clipped": 0.0}
        row["audio"] = (0 if silent else 0.02 * (subject + 1)) * rng.standard_normal(80000).astype(np.float32)
        row["eeg"] = (subject + 1) * row["has_eeg"] * rng.standard_normal((30, 500)).astype(np.float32)
        rows.append(row)
    if equal:
        rows = [row | {m: rows[0][m] for m in ("audio", "eeg")} for row in rows]
    if twin:
        rows[twin[1]]["eeg"] = rows[twin[0]]["eeg"]
    store = Store(folder / "shards")
    content = tables.encode_parquet(
        tables.build_window_table(rows, schema.make_schema(e.preprocessing, 30, ("audio", "eeg")))
    )
    store.write("a.parquet", content)
    file = shards_index.ShardFile("a.parquet", sha256(content), len(rows))
    index = shards_index.ShardIndex("k", tuple("abcde"), ("audio", "eeg"), 30, (file,), list_package_versions())
    shards_index.write_index(store, index)
    return WindowCache(store, shards_index.read_index(store), cache=folder / "cache", cache_gb=1)


def make_honest_checkpoint(windows: WindowCache, protocol: str = "loso") -> Checkpoint:
    """A finished checkpoint whose statistics are of its training rows."""
    e, shapes = make_experiment(protocol), DataShapes(30, 5)
    split = make_split(list_labeled_recordings(windows.ids, e.data, e.seed), e.split)
    torch.manual_seed(0)
    model = Classifier(e, shapes)
    fit_model_statistics(model, windows, split.train)
    weights = model.state_dict()
    return make_checkpoint(e, tuple("abcde"), split, shapes=shapes, weights=weights)


def validate_on_test(one: Checkpoint) -> Checkpoint:
    """What was tested had validated."""
    return replace(one, split=replace(one.split, validation=one.split.test))

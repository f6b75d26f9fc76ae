"""A small training of two modalities on noise, which can be killed and given again."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from eav_ray.config import Experiment, load_experiment
from eav_ray.data.datasets.eav import EAV_CHANNELS
from eav_ray.data.shards import index as shards_index
from eav_ray.data.shards import schema, tables
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import Split
from eav_ray.storage import Store, list_package_versions, sha256
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.prepared_run import WorkerContext
from eav_ray.training.run_spec import Progress, Run
from eav_ray.training.runner import execute_run
from tests.helpers.paths import DEMO

TRAIN = tuple(f"subject1/{k:03d}" for k in range(7))


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


def make_experiment(engine: str) -> Experiment:
    """Two modalities, dropout and modality dropout on, a ragged last batch."""
    small = {"model.eeg.filters": 2, "model.eeg.width": 16, "model.eeg.temporal_width": 16, "model.eeg.dropout": 0.2}
    small |= {"model.audio.width": 16, "model.audio.depth": 1, "model.audio.heads": 2, "fusion.width": 16}
    small |= {"data.modalities": ["audio", "eeg"], "train.mode": "end_to_end", "train.checkpoint_epochs": 1}
    small |= {"optim.epochs": 4, "optim.batch": 4, "runtime.engine": engine, "runtime.workers": 1}
    return load_experiment(DEMO, small)


def make_windows(folder: Path, channel_order: Sequence[int] | None = None) -> WindowCache:
    """Noise, eight windows; the last recording is for the test side and must never be seen.

    Args:
        channel_order: Of EAV's channels, the number of each in the shards; none: they have no names.
    """
    rng = np.random.default_rng(0)
    preprocessing_config = make_experiment("torch").preprocessing
    rows = []
    for k in range(8):
        ids = {"subject": "subject1", "recording": f"{k:03d}", "window": 0, "label": k % 5, "task": "", "order": k}
        ids |= {f"has_{m}": not (k == 2 and m == "audio") for m in ("audio", "eeg")}
        ids |= {"audio_seconds": 5.0, "eeg_seconds": 5.0, "eeg_bad_channels": 0, "audio_db": 0.0, "audio_clipped": 0.0}
        signals = {"audio": 0.1 * rng.standard_normal(80000), "eeg": rng.standard_normal((30, 500))}
        if channel_order is not None:
            signals["eeg"] = signals["eeg"][channel_order]
        rows.append(ids | {m: x.astype(np.float32) for m, x in signals.items()})
    store = Store(folder / "shards")
    content = tables.encode_parquet(
        tables.build_window_table(rows, schema.make_schema(preprocessing_config, 30, ("audio", "eeg")))
    )
    store.write("a.parquet", content)
    file = shards_index.ShardFile("a.parquet", sha256(content), 8, "subject1")
    names = tuple(EAV_CHANNELS[i] for i in channel_order or ())
    index = shards_index.ShardIndex("k", tuple("abcde"), ("audio", "eeg"), 30, (file,), list_package_versions(), names)
    shards_index.write_index(store, index)
    return WindowCache(
        store, shards_index.read_index(store), cache=folder / "cache", cache_gb=1, allowed_recordings=TRAIN
    )


def train(
    windows: WindowCache,
    folder: Path,
    engine: str,
    *,
    run: Run | None = None,
    killed_after: tuple[int, ...] = (),
    stop: int | None = None,
    reported: set[str] | None = None,
) -> dict[str, torch.Tensor]:
    """Train; give the same run again each time that it was killed after these epochs.

    Args:
        run: Of both modalities together, if none is given.
        stop: Return what was saved after this epoch instead of the end.
        told: Gets what the run says of damaged checkpoints.
    """
    place = WorkerContext(windows, Store(folder), torch.device("cpu"))
    run = run or Run("joint", make_experiment(engine), Split("within", TRAIN, (), ("subject1/007",)), "data")
    for epoch in (*killed_after, stop):

        def report(progress: Progress, epoch: int | None = epoch) -> None:
            if reported is not None:
                reported.update(progress.damaged_checkpoints)
            if progress.epoch == epoch:
                raise Killed

        try:
            prefix = execute_run(run, place, report)
        except Killed:
            if epoch == stop:
                (found, _) = ckpt.load_latest_checkpoint(place.results, run.key)
                assert found is not None
                return found[1].weights
            continue
        return ckpt.OpenedCheckpoint(place.results, prefix).weights
    raise AssertionError("the run was never left to finish")

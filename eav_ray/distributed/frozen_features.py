"""Encoders that keep their published weights run once over the shards: by Ray Data, on GPUs where there are.

What they make of a window depends on nobody whom anything was trained on, so all folds of all protocols share it.
"""

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import ray
import torch

from eav_ray.config import Experiment
from eav_ray.data.shards.index import ShardFile, ShardIndex
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.distributed import cluster
from eav_ray.distributed.ray_workarounds import configure_ray_data, map_with_retries
from eav_ray.errors import DataError
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes
from eav_ray.storage import Store
from eav_ray.tracking.progress import open_progress_bar
from eav_ray.training.dataloader import RawSource, WindowLabels, make_inference_batches
from eav_ray.training.embeddings import (
    FEATURE_ARRAYS,
    build_part_name,
    commit_embeddings,
    compute_embeddings,
    get_token_times,
    write_embedding_part,
)
from eav_ray.training.prepared_run import load_pretrained_encoders
from eav_ray.training.run_spec import Run

BATCH_SIZE = 32  # windows
LOCK_RETRY_S = 2.0


def compute_frozen_features(experiment: Experiment, runs: list[Run], shards: Store, index: ShardIndex) -> None:
    """Compute the features that these runs train on, as far as they are not there; shards that are done are skipped.

    Raises:
        ConfigError: Published weights are not where the experiment says, or do not fit.
    """
    results = Store(experiment.store.results)
    for key, run in {run.features_prefix: run for run in runs if run.features_prefix}.items():
        if results.is_committed(key):
            continue
        (m,) = run.experiment.data.modalities
        with _lock_features(results, key, m):
            if results.is_committed(key):
                continue
            shapes = DataShapes(index.eeg_channels, len(index.classes))
            model = _load_published(run.experiment, shapes)  # what is wrong with the weights is said here
            todo = [f for f in index.shards if not results.exists(build_part_name(key, _get_part_id(f)))]
            total, done = sum(f.rows for f in index.shards), sum(f.rows for f in index.shards if f not in todo)
            with open_progress_bar(f"compute {m} features", total, "windows") as bar:
                bar.set_done(done)
                for rows in _embed_shards(run, key, todo, shards, index, shapes) if todo else []:
                    done += rows
                    bar.set_done(done)
            commit_embeddings(results, key, get_token_times(model))


@contextmanager
def _lock_features(results: Store, key: str, modality: str) -> Iterator[None]:
    """One job embeds; others that need the same wait for it."""
    announced = False
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(results.lock(f"{key}.lock"))
            except DataError:
                if not announced:
                    print(f"waits for another job that embeds {modality}", flush=True)
                announced = True
            else:
                yield
                return
        time.sleep(LOCK_RETRY_S)


def _get_part_id(file: ShardFile) -> str:
    return file.sha256[:16]


def _load_published(experiment: Experiment, shapes: DataShapes) -> Classifier:
    model = Classifier(experiment, shapes)
    load_pretrained_encoders(model, experiment)
    return model


def _embed_shards(
    run: Run, key: str, todo: list[ShardFile], shards: Store, index: ShardIndex, shapes: DataShapes
) -> Iterator[int]:
    """Yields how many windows were embedded, as they are."""
    runtime = run.experiment.runtime
    configure_ray_data()
    files = ray.data.from_items([{"file": file.file} for file in todo], override_num_blocks=len(todo))
    parts = map_with_retries(
        files.map_batches,
        FrozenEncoder,
        fn_constructor_args=(run, key, str(shards), index, shapes),
        batch_size=1,
        num_cpus=runtime.cpus_per_worker,
        num_gpus=runtime.gpus_per_worker or None,
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=max(1, min(len(todo), cluster.count_fitting_workers(runtime)))
        ),
    )
    for row in parts.iter_rows():
        yield int(row["windows"])


class FrozenEncoder:
    """An actor of Ray Data: the encoder, loaded once; a shard in, its part of the features written."""

    def __init__(self, run: Run, key: str, shards: str, index: ShardIndex, shapes: DataShapes) -> None:
        runtime = run.experiment.runtime
        torch.set_num_threads(max(1, int(runtime.cpus_per_worker)))
        self._device = torch.device("cuda" if cluster.has_gpu(runtime) else "cpu")
        self.model = _load_published(run.experiment, shapes).to(self._device)
        self._run, self._key, self._shards, self._index = run, key, Store(shards), index
        self._files = {file.file: file for file in index.shards}

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"windows": np.array([self._embed_shard(self._files[str(name)]) for name in batch["file"]])}

    def _embed_shard(self, file: ShardFile) -> int:
        e = self._run.experiment
        windows = WindowCache(
            self._shards, replace(self._index, shards=(file,)), cache=e.store.cache, cache_gb=e.store.cache_gb
        )
        source = RawSource(windows, list(e.data.modalities))
        batches = make_inference_batches(
            source, WindowLabels.from_windows(windows, {}), np.arange(len(windows)), BATCH_SIZE
        )
        table = compute_embeddings(
            self.model, batches, windows, self._device, precision=e.runtime.precision, arrays=FEATURE_ARRAYS
        )
        write_embedding_part(Store(e.store.results), self._key, _get_part_id(file), table)
        return len(windows)

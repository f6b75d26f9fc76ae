"""Encoders that keep their published weights run once over the shards: by Ray Data, on GPUs where there are.

What they make of a window depends on nobody whom anything was trained on, so all folds of all protocols share it.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import ray

from eav_ray.config import Experiment, RuntimeConfig
from eav_ray.data.shards.dataset import Dataset
from eav_ray.data.shards.index import ShardFile
from eav_ray.distributed import cluster
from eav_ray.distributed.ray_workarounds import configure_ray_data, map_with_retries
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
    has_embeddings,
    write_embedding_part,
)
from eav_ray.training.prepared_run import describe_shapes, load_pretrained_encoders
from eav_ray.training.run_spec import Run

BATCH_SIZE = 32  # windows
PASS = "shards"  # parts are of one shard each and never replaced, so all passes over the shards fill one folder


def compute_frozen_features(experiment: Experiment, runs: list[Run], data: Dataset) -> None:
    """Compute the features that these runs train on, as far as they are not there; shards that are done are skipped.

    Raises:
        ConfigError: Published weights are not where the experiment says, or do not fit.
    """
    results = Store(experiment.store.results)
    for key, run in {run.features_prefix: run for run in runs if run.features_prefix}.items():
        if has_embeddings(results, key):
            continue
        (m,) = run.experiment.data.modalities
        note = f"waits for another job that embeds {m}"
        with results.lock(f"{key}.lock", timeout_s=math.inf, on_wait=partial(print, note, flush=True)) as guarded:
            if has_embeddings(results, key):
                continue
            index, shapes = data.index, describe_shapes(data.index)
            model = _load_published(run.experiment, shapes)  # what is wrong with the weights is said here
            todo = [f for f in index.shards if not results.exists(build_part_name(key, PASS, _get_part_id(f)))]
            total, done = sum(f.rows for f in index.shards), sum(f.rows for f in index.shards if f not in todo)
            with open_progress_bar(f"compute {m} features", total, "windows") as bar:
                bar.set_done(done)
                for rows in _embed_shards(run, key, todo, data, shapes, experiment.runtime) if todo else []:
                    done += rows
                    bar.set_done(done)
            commit_embeddings(guarded, key, PASS, get_token_times(model))


def _get_part_id(file: ShardFile) -> str:
    return file.sha256[:16]


def _load_published(experiment: Experiment, shapes: DataShapes) -> Classifier:
    model = Classifier(experiment, shapes)
    load_pretrained_encoders(model, experiment)
    return model


def _embed_shards(
    run: Run, key: str, todo: list[ShardFile], data: Dataset, shapes: DataShapes, runtime: RuntimeConfig
) -> Iterator[int]:
    """Yields how many windows were embedded, as they are."""
    configure_ray_data()
    files = ray.data.from_items([{"file": file.file} for file in todo], override_num_blocks=len(todo))
    parts = map_with_retries(
        files.map_batches,
        FrozenEncoder,
        fn_constructor_args=(run, key, data, shapes, runtime),
        batch_size=1,
        num_cpus=runtime.cpus_per_worker,
        num_gpus=runtime.gpus or None,
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=max(1, min(len(todo), cluster.count_fitting_workers(runtime)))
        ),
    )
    for row in parts.iter_rows():
        yield int(row["windows"])


class FrozenEncoder:
    """An actor of Ray Data: the encoder, loaded once; a shard in, its part of the features written."""

    def __init__(self, run: Run, key: str, data: Dataset, shapes: DataShapes, runtime: RuntimeConfig) -> None:
        self._device = cluster.set_up_torch(runtime)
        self.model = _load_published(run.experiment, shapes).to(self._device)
        self._run, self._key, self._data = run, key, data
        self._files = {file.file: file for file in data.index.shards}

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"windows": np.array([self._embed_shard(self._files[str(name)]) for name in batch["file"]])}

    def _embed_shard(self, file: ShardFile) -> int:
        e = self._run.experiment
        windows = replace(self._data, index=replace(self._data.index, shards=(file,))).windows
        source = RawSource(windows, list(e.data.modalities))
        batches = make_inference_batches(
            source, WindowLabels.from_windows(windows, {}), np.arange(len(windows)), BATCH_SIZE
        )
        table = compute_embeddings(
            self.model, batches, windows, self._device, precision=e.runtime.precision, arrays=FEATURE_ARRAYS
        )
        write_embedding_part(Store(e.store.results).assume_reachable(), self._key, PASS, _get_part_id(file), table)
        return len(windows)

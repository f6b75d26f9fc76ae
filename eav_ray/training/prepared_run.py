"""Prepare a run: its data, its module and the weights that it starts from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from eav_ray.config import Experiment
from eav_ray.data.shards.dataset import Dataset
from eav_ray.data.shards.index import ShardIndex
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import list_labeled_recordings
from eav_ray.errors import DataError
from eav_ray.models.classifier import Classifier, FusionClassifier, HeadClassifier
from eav_ray.models.encoders.base import DataShapes, Encoder
from eav_ray.models.fusion.factory import build_fusion
from eav_ray.storage import Store
from eav_ray.training.access import list_split_recordings
from eav_ray.training.checkpoint import OpenedCheckpoint, load_trained, open_checkpoint
from eav_ray.training.collectives import rank_and_world_size
from eav_ray.training.computed_features import FeatureMemory, FeatureSource, StoredFeatures, list_computed_modalities
from eav_ray.training.dataloader import (
    BatchLoader,
    RawSource,
    Source,
    WindowLabels,
    find_channel_orders,
    select_rows_with_modality,
)
from eav_ray.training.embeddings import FEATURE_ARRAYS, EmbeddingSource, build_embedding_key
from eav_ray.training.run_spec import Run
from eav_ray.training.statistics import compute_class_weights, fit_model_statistics
from eav_ray.training.subject_statistics import normalise_source
from eav_ray.training.target_scale import TargetScale, fit_target_scale


@dataclass(frozen=True)
class WorkerContext:
    """What a process has at hand for any run."""

    windows: WindowCache
    results: Store
    device: torch.device
    holder: str = ""  # of the locks of its runs (`Store.lock`)
    open_recordings: Callable[[tuple[str, ...]], WindowCache] | None = None  # of others than `windows` has
    features: FeatureMemory = field(default_factory=FeatureMemory)  # for all its runs

    def open_windows(self, recordings: tuple[str, ...]) -> WindowCache:
        """Open the windows of recordings that statistics without labels may be taken of.

        These may be more than `windows` has: what a run may look at so is its access level (`split.access`).
        """
        return self.open_recordings(recordings) if self.open_recordings else self.windows


def open_worker_context(
    experiment: Experiment, data: Dataset, device: torch.device, allowed_recordings: tuple[str, ...], holder: str = ""
) -> WorkerContext:
    """Open the windows of some recordings, and the results store, for whatever runs this process executes."""
    results = Store(experiment.store.results).assume_reachable()
    return WorkerContext(data.open_windows(allowed_recordings), results, device, holder, data.open_windows)


@dataclass(frozen=True)
class PreparedRun:
    """What a run trains, and on what."""

    run: Run
    context: WorkerContext
    source: Source
    labels: WindowLabels
    module: nn.Module
    shapes: DataShapes


def prepare_run(
    run: Run, context: WorkerContext, *, fresh: bool, source: Source | None = None, labels: WindowLabels | None = None
) -> PreparedRun:
    """
    Args:
        fresh: Start from published weights, where the experiment names some; otherwise a checkpoint follows.
        source, labels: Those of the run, where they are at hand.
    """
    source, labels = source or open_source(run, context), labels or build_labels(run, context)
    torch.manual_seed(run.experiment.seed)
    module, shapes = build_module(run, context, source)
    if fresh and not run.init_from:
        _fit_module_statistics(module, run, context, source)
    if fresh and run.init_from:
        module.load_state_dict(_load_initial_weights(run, context))
    elif fresh and isinstance(module, Classifier):
        load_pretrained_encoders(module, run.experiment)
    return PreparedRun(run, context, source, labels, module, shapes)


def build_labels(run: Run, context: WorkerContext) -> WindowLabels:
    """Collect what is true of the windows, and the scale of numbers."""
    items = list_labeled_recordings(context.windows.ids, run.experiment.data, run.experiment.seed)
    by_recording = {i.id: i.truth for i in items}
    scale = _find_target_scale(run, context, by_recording) if context.windows.index.targets else None
    return WindowLabels.from_windows(context.windows, by_recording, scale)


def _find_target_scale(
    run: Run, context: WorkerContext, by_recording: Mapping[str, int | tuple[float, ...]]
) -> TargetScale | None:
    """Find the scale of targets: that of the checkpoint that a run adapts, else that of its training recordings."""
    if run.init_commit_hash:
        return _open_initial_checkpoint(run).state.scale
    values = np.array([by_recording[i] for i in run.split.train if i in by_recording], np.float64)
    return fit_target_scale(context.windows.index.targets, values)


def _load_initial_weights(run: Run, context: WorkerContext) -> dict[str, Tensor]:
    if not run.init_commit_hash:
        return load_trained(context.results, run.init_from).weights
    return _open_initial_checkpoint(run).weights


def _open_initial_checkpoint(run: Run) -> OpenedCheckpoint:
    checkpoint = open_checkpoint(run.init_from)
    if checkpoint.commit_sha256 != run.init_commit_hash:
        raise DataError(f"{run.init_from} has changed since this run was planned; give the command again")
    return checkpoint


def find_shapes(run: Run, context: WorkerContext) -> DataShapes:
    """Find the channels and classes of a run: those of the checkpoint that it adapts, else those of the windows."""
    if run.init_commit_hash:
        return _open_initial_checkpoint(run).state.shapes
    return describe_shapes(context.windows.index)


def describe_shapes(index: ShardIndex) -> DataShapes:
    """Describe the channels and classes of shards."""
    return DataShapes(index.eeg_channels, index.n_outputs, index.eeg_channel_names)


def build_batch_loader(prepared: PreparedRun) -> BatchLoader:
    e, optim, split = prepared.run.experiment, prepared.run.optim, prepared.run.split
    names = tuple(e.data.modalities)
    rows = select_rows_with_modality(prepared.context.windows, split.train, names)
    if not len(rows):
        raise DataError(
            f"no training row has {' or '.join(names)}; take it out of data.modalities, or use another fold"
        )
    dropout = e.fusion.modality_dropout if len(names) > 1 else 0.0
    weight = None
    if prepared.run.weighs_classes and prepared.labels.scale is None:
        weight = compute_class_weights(prepared.labels.label[rows], prepared.shapes.n_outputs)
    return BatchLoader(
        prepared.source, prepared.labels, rows, e.seed, optim.batch, dropout, *rank_and_world_size(), weight
    )


def open_source(run: Run, context: WorkerContext) -> Source:
    if run.features_prefix:
        return open_features(run, context, pooled=True)
    if run.kind != "fusion":
        names = run.experiment.data.modalities
        shapes = find_shapes(run, context)
        orders = find_channel_orders(context.windows, names, shapes.eeg_channel_names)
        raw = RawSource(context.windows, names, channel_orders=orders)
        # Mixup is of windows, not of features.
        computed = [] if run.optim.mixup else list_computed_modalities(run.experiment)
        source = FeatureSource(
            raw,
            {m: StoredFeatures(run.experiment, m, shapes, raw, context.windows, context.features) for m in computed},
        )
        recordings = list_split_recordings(run.split, run.embedded_recordings)
        return normalise_source(
            source,
            run.experiment,
            shapes,
            context.windows,
            lambda: (context.open_windows(recordings), recordings),
            context.features,
        )
    keys = {m: build_embedding_key(key, run.embedded_recordings) for m, key in run.encoder_keys.items()}
    return EmbeddingSource(context.results, keys, context.windows, pooled=run.experiment.fusion.uses_pooled_features)


def open_features(run: Run, context: WorkerContext, *, pooled: bool = False) -> EmbeddingSource:
    (m,) = run.experiment.data.modalities
    return EmbeddingSource(
        context.results, {m: run.features_prefix}, context.windows, pooled=pooled, arrays=FEATURE_ARRAYS
    )


def _fit_module_statistics(module: nn.Module, run: Run, context: WorkerContext, source: Source) -> None:
    if isinstance(module, Classifier):
        fit_model_statistics(module, context.windows, run.split.train, source)


def build_module(
    run: Run, context: WorkerContext, source: Source
) -> tuple[Classifier | HeadClassifier | FusionClassifier, DataShapes]:
    """A module with fresh weights."""
    shapes = find_shapes(run, context)
    if run.features_prefix:
        classifier = Classifier(run.experiment, shapes)
        load_pretrained_encoders(classifier, run.experiment)
        return HeadClassifier(classifier), shapes
    if isinstance(source, EmbeddingSource):
        fusion = build_fusion(run.experiment, source.widths, source.times_s, shapes.n_outputs)
        return FusionClassifier(fusion, source.names), shapes
    return Classifier(run.experiment, shapes), shapes


def load_pretrained_encoders(module: Classifier, experiment: Experiment) -> None:
    """Raises ConfigError where the weights that the experiment names are not there or do not fit."""
    for m in module.modalities:
        weights = getattr(experiment.model[m], "weights", "")
        if weights:
            encoder = module.encoders[m]
            assert isinstance(encoder, Encoder)
            encoder.load_pretrained(weights)

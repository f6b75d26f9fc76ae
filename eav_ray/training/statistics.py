"""Fit normalization and class weights on training rows."""

import numpy as np
import torch
from torch import Tensor

from eav_ray.config import select_channel_modalities
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.errors import DataError
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import Encoder, Features, SubjectStatistics, pick_subject_statistics
from eav_ray.training.dataloader import RawSource, Source, select_rows_with_modality, subsample_evenly

MAX_STATISTICS_WINDOWS = 2048  # that the statistics of computed features are taken of


def compute_class_weights(labels: np.ndarray, n_outputs: int) -> np.ndarray:
    """(classes,) inversely proportional to their number, 1 in the mean over the rows."""
    counts = np.bincount(labels, minlength=n_outputs)
    present = counts > 0
    return np.where(present, len(labels) / (present.sum() * np.maximum(counts, 1)), 0.0).astype(np.float32)


def fit_model_statistics(
    model: Classifier, windows: WindowCache, recordings: tuple[str, ...], source: Source | None = None
) -> None:
    """Fit the normalisation of channels, and of what encoders compute, on training rows; it becomes weights.

    Args:
        source: The model's inputs; stored windows as they are, where none is given.
    """
    source = source or RawSource(windows, model.modalities)
    for m in select_channel_modalities(model.modalities):
        if not model.encoders[m].standardises_channels:
            continue  # mean 0 and SD 1 leave them as they are
        mean, sd = compute_channel_statistics(windows, m, select_rows_with_modality(windows, recordings, (m,)))
        model.normalise.mean.copy_(mean)
        model.normalise.sd.copy_(sd)
    for m in model.modalities:
        encoder = model.encoders[m]
        assert isinstance(encoder, Encoder)
        rows = subsample_evenly(select_rows_with_modality(windows, recordings, (m,)), MAX_STATISTICS_WINDOWS)
        parts = (rows[start : start + 64] for start in range(0, len(rows), 64))
        # Only those that need them read them.
        encoder.fit_statistics(_read_inputs(model, m, source, part) for part in parts)


def _read_inputs(
    model: Classifier, modality: str, source: Source, rows: np.ndarray
) -> tuple[Tensor | Features, SubjectStatistics | None]:
    inputs = source.get(rows)
    return model.prepare_input(inputs, modality), pick_subject_statistics(inputs, modality)


def compute_channel_statistics(windows: WindowCache, modality: str, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and SD of each channel of a modality over training rows: ((channels,), (channels,)), as stored."""
    total, squares, count = 0.0, 0.0, 0
    for start in range(0, len(rows), 128):
        x_BCT = windows.get(rows[start : start + 128], modality).astype(np.float64)
        total = total + x_BCT.sum((0, 2))
        squares = squares + np.square(x_BCT).sum((0, 2))
        count += x_BCT.shape[0] * x_BCT.shape[2]
    if not count:
        raise DataError(f"no training row has {modality}; take {modality} out of data.modalities")
    mean = total / count
    sd = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
    # A channel that is masked in every training row has no spread; dividing by 1 leaves it at zero.
    return torch.as_tensor(mean), torch.as_tensor(np.where(sd > 0, sd, 1.0))

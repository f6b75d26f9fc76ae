"""What encoders compute of stored windows before anything is learned: each window once in a process.

Cepstra, band powers and covariances take far longer than a step of the small network behind them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from eav_ray.config import Experiment, digest, get_modality_info
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.models.encoders.base import KNOWN_SUFFIX, VALUES_SUFFIX, DataShapes, Encoder, Features
from eav_ray.models.encoders.factory import build_encoder
from eav_ray.training.dataloader import RawSource

MAX_BYTES = 1 << 30  # of a process: 20 thousand windows of the largest features, covariances of 30 electrodes


@dataclass
class FeatureMemory:
    """Keep the features of windows, as long as they fit.

    Attributes:
        max_bytes: What is beyond is computed anew each time.
    """

    max_bytes: int = MAX_BYTES
    _kept: dict[tuple[str, str, int], Features] = field(default_factory=dict)
    _n_bytes: int = 0

    def get(self, key: str, windows: Sequence[tuple[str, int]], compute: Callable[[int], Features]) -> Features:
        """Return the features of windows, stacked.

        Args:
            key: What computes them, and from which data.
            windows: Id of the recording, and number within it.
            compute: Computes those of one window, by its position among `windows`: (1, ..., features). Alone, so that
                its features are the same bits in whatever batch it is.
        """
        parts = [self._get(key, window, compute, position) for position, window in enumerate(windows)]
        return Features(torch.cat([p.values for p in parts]), torch.cat([p.known for p in parts]))

    def _get(self, key: str, window: tuple[str, int], compute: Callable[[int], Features], position: int) -> Features:
        features = self._kept.get((key, *window))
        if features is None:
            features = compute(position)
            size = sum(x.numel() * x.element_size() for x in features)
            if self._n_bytes + size <= self.max_bytes:
                self._kept[(key, *window)] = features
                self._n_bytes += size
        return features


class StoredFeatures:
    """Read what the encoder of a modality computes of stored windows.

    Args:
        experiment: Describes the encoder; nothing that it learns has a part in this.
        source: Reads the windows.
        windows: What they are of.
    """

    def __init__(
        self,
        experiment: Experiment,
        modality: str,
        shapes: DataShapes,
        source: RawSource,
        windows: WindowCache,
        memory: FeatureMemory,
    ) -> None:
        self.encoder: Encoder = build_encoder(experiment, modality, shapes).eval()
        self._modality, self._source, self._memory = modality, source, memory
        self._key = digest(modality, experiment.model[modality], list(shapes), windows.index.fingerprint)
        self._windows = list(zip(windows.ids["id"], windows.ids["window"].tolist(), strict=True))

    def get(self, rows: np.ndarray) -> Features:
        """Compute the features of windows, by row number, or look them up."""
        return self._memory.get(
            self._key, [self._windows[r] for r in rows.tolist()], lambda position: self.compute(rows[[position]])
        )

    def compute(self, rows: np.ndarray) -> Features:
        """Compute the features of windows together, and keep nothing of them."""
        with torch.no_grad():
            features = self.encoder.compute_features(self._source.get_modality(rows, self._modality))
        return Features(features.values, features.known.contiguous())


class FeatureSource:
    """A source of stored windows that gives of some modalities what their encoders compute instead.

    Args:
        features: By modality.
    """

    def __init__(self, source: RawSource, features: dict[str, StoredFeatures]) -> None:
        self.names = source.names
        self._source, self._features = source, features

    def get(self, rows: np.ndarray) -> dict[str, Tensor]:
        inputs: dict[str, Tensor] = {}
        for m in self.names:
            if m in self._features:
                found = self._features[m].get(rows)
                inputs |= {f"{m}{VALUES_SUFFIX}": found.values, f"{m}{KNOWN_SUFFIX}": found.known}
            else:
                inputs[m] = self._source.get_modality(rows, m)
        return inputs

    def get_presence(self, rows: np.ndarray) -> np.ndarray:
        return self._source.get_presence(rows)


def list_computed_modalities(experiment: Experiment) -> list[str]:
    """List the modalities whose encoders start from features into which nothing goes that was fitted or learned."""
    found: list[str] = []
    for m in experiment.data.modalities:
        # Named channels are standardised by the training rows, unless the encoder normalises within subjects.
        is_fitted = get_modality_info(m).has_named_channels and m not in experiment.list_normalised_modalities()
        if experiment.model[m].is_handcrafted and not is_fitted:
            found.append(m)
    return found

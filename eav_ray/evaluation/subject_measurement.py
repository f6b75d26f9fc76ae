"""What was measured of a subject by whom windows are normalised: it grows, and goes over a network as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eav_ray.errors import DataError
from eav_ray.training.subject_statistics import FeatureSums, SubjectMoments

MIN_WINDOWS = 2  # of a modality: one window alone has no SD
MIN_COUNT = 2  # windows or steps in which a feature must be known, or it counts as the mean from then on
MAX_SUM = 1e30  # of features, which are float32
SUM_NAMES = ("count", "total", "squares")


@dataclass(frozen=True)
class SubjectMeasurement:
    """Sums of features over the windows of one subject, by modality.

    Attributes:
        n_windows: How many windows each modality was measured in.
        n_recordings: How many recordings they are of.
    """

    sums: Mapping[str, FeatureSums] = field(default_factory=dict)
    n_windows: Mapping[str, int] = field(default_factory=dict)
    n_recordings: int = 0

    def __add__(self, other: "SubjectMeasurement") -> "SubjectMeasurement":
        sums = dict(self.sums)
        for m, part in other.sums.items():
            sums[m] = sums[m] + part if m in sums else part
        windows = {m: self.n_windows.get(m, 0) + other.n_windows.get(m, 0) for m in sums}
        return SubjectMeasurement(sums, windows, self.n_recordings + other.n_recordings)

    def has(self, modality: str, n_windows: int = MIN_WINDOWS) -> bool:
        """Whether a modality was measured in enough windows, which are not all alike."""
        return self.n_windows.get(modality, 0) >= n_windows and not self.is_constant(modality)

    def is_constant(self, modality: str) -> bool:
        """Whether no feature of a modality differs between what was measured: copies, or one row of one recording."""
        if modality not in self.sums:
            return True
        sums = self.sums[modality]
        n = np.maximum(sums.count, 1)
        mean, mean_square = sums.total / n, sums.squares / n
        return not (mean_square - np.square(mean) > 1e-9 * (1 + mean_square)).any()

    def compute_moments(self, subject: str, n_features: Mapping[str, int]) -> dict[str, SubjectMoments]:
        """Compute mean and SD of each modality of `n_features`.

        Of a feature that was measured too rarely the SD is infinite: whatever it is then counts as the mean.
        """
        found: dict[str, SubjectMoments] = {}
        for m, n in n_features.items():
            sums = self.sums.get(m, FeatureSums(*np.zeros((3, n))))
            mean, sd = sums.compute_moments()
            found[m] = SubjectMoments({subject: mean}, {subject: np.where(sums.count >= MIN_COUNT, sd, np.inf)})
        return found

    def to_tree(self, model: str) -> dict[str, Any]:
        """Make a tree of JSON.

        Args:
            model: Names the model whose features these are.
        """
        modalities = {
            m: {"windows": self.n_windows[m]} | {name: getattr(sums, name).tolist() for name in SUM_NAMES}
            for m, sums in self.sums.items()
        }
        return {"model": model, "recordings": self.n_recordings, "modalities": modalities}

    @classmethod
    def from_tree(cls, tree: Any, model: str, n_features: Mapping[str, int]) -> "SubjectMeasurement":
        """Read what `to_tree` made, whoever sent it.

        Args:
            n_features: How many features the model has of each modality that it normalises.
        Raises:
            DataError: It is of another model, or no measurement.
        """
        if not isinstance(tree, dict) or not isinstance(tree.get("modalities"), dict):
            raise DataError("subject is no measurement; send what POST /measure answered under `subject`")
        if tree.get("model") != model:
            raise DataError(f"subject was measured for another model than {model}; measure it again by POST /measure")
        try:
            n_recordings = _parse_count(tree["recordings"])
            sums = {m: _parse_sums(part, n_features[m]) for m, part in tree["modalities"].items()}
            windows = {m: _parse_count(part["windows"]) for m, part in tree["modalities"].items()}
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
            raise DataError(f"subject is damaged ({reason}); measure it again by POST /measure") from None
        return cls(sums, windows, n_recordings)


def _parse_count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**9:
        raise ValueError("a count is no whole number")
    return value


def _parse_sums(tree: Any, n_features: int) -> FeatureSums:
    for name in SUM_NAMES:
        values = tree[name]
        is_list = isinstance(values, list) and len(values) == n_features
        if not is_list or not all(type(v) in (int, float) and abs(v) <= MAX_SUM for v in values):  # NaN is not
            raise ValueError(f"sums are not {n_features} numbers")
    sums = FeatureSums(*(np.array(tree[name], np.float64) for name in SUM_NAMES))
    could_be = sums.count * sums.squares * (1 + 1e-6) + 1e-6 >= np.square(sums.total)
    if (sums.count < 0).any() or (sums.count % 1).any() or not could_be.all():
        raise ValueError("sums that no features have")
    return sums

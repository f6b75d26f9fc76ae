"""Mean and SD of features within each subject, for encoders that normalise by them.

Which recordings of a subject count is the access level of the experiment (`split.access`). No label is looked at.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from eav_ray.config import Experiment, SplitConfig
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.errors import DataError
from eav_ray.models.encoders.base import MEAN_SUFFIX, SD_SUFFIX, DataShapes, Encoder, Features, SubjectStatistics
from eav_ray.training.computed_features import FeatureMemory, StoredFeatures
from eav_ray.training.dataloader import RawSource, Source, find_channel_orders


def select_accessible_recordings(ids: pd.DataFrame, recordings: Iterable[str], access: SplitConfig) -> tuple[str, ...]:
    """Select the recordings that the access level lets statistics be taken of.

    Args:
        ids: One row a window: `id`, `subject`, `order`.
        recordings: Those that there are.
    Raises:
        DataError: The access level allows none.
    """
    if access.access == "source_only":
        raise DataError("split.access=source_only allows no statistics of a subject; set it to unlabelled_block")
    each = ids[ids["id"].isin(list(recordings))].drop_duplicates("id").sort_values(["subject", "order", "id"])
    if access.access != "unlabelled_block":
        each = each.groupby("subject").head(access.access_recordings)
    return tuple(each["id"])


@dataclass(frozen=True)
class FeatureSums:
    """Sums over windows, of which the statistics of a subject are made: (features,) float64 each."""

    count: np.ndarray
    total: np.ndarray
    squares: np.ndarray

    def __add__(self, other: "FeatureSums") -> "FeatureSums":
        return FeatureSums(self.count + other.count, self.total + other.total, self.squares + other.squares)

    def compute_moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Compute mean and SD; what never changes, or was never known, has an SD of 1, so that it stays 0."""
        n = np.maximum(self.count, 1)
        mean = self.total / n
        sd = np.sqrt(np.maximum(self.squares / n - np.square(mean), 0))
        return mean, np.where(sd > 1e-6 * (1 + np.abs(mean)), sd, 1.0)


def sum_features(encoder: Encoder, x: Tensor) -> FeatureSums:
    """Sum what an encoder computes of windows of one subject."""
    with torch.no_grad():
        first, *rest = (_sum_values(encoder.compute_features(part)) for part in x.split(encoder.statistics_windows))
    return sum(rest, start=first)


def _sum_values(features: Features) -> FeatureSums:
    values = features.values.double().cpu().numpy().reshape(-1, features.values.shape[-1])
    known = features.expand_known().cpu().numpy().reshape(values.shape)
    return FeatureSums(
        known.sum(0).astype(np.float64),
        np.where(known, values, 0).sum(0),
        np.where(known, np.square(values), 0).sum(0),
    )


@dataclass(frozen=True)
class SubjectMoments:
    """Statistics of one modality, by subject."""

    mean: Mapping[str, np.ndarray]  # (features,) float64
    sd: Mapping[str, np.ndarray]

    @classmethod
    def from_sums(cls, sums: Mapping[str, FeatureSums]) -> "SubjectMoments":
        """Compute the statistics of each subject."""
        subject_statistics = {subject: each.compute_moments() for subject, each in sums.items()}
        return cls(
            {s: mean for s, (mean, _) in subject_statistics.items()},
            {s: sd for s, (_, sd) in subject_statistics.items()},
        )

    def get(self, subjects: Sequence[str], modality: str) -> SubjectStatistics:
        """Return those of the subject of each window.

        Raises:
            DataError: There are none of a subject.
        """
        for subject in subjects:
            if subject not in self.mean:
                raise DataError(
                    f"there is no recording of {subject} with {modality} by which split.access lets it be normalised; "
                    f"leave {subject} out, or set model.{modality}.subject_normalisation=none"
                )
        parts = (np.stack([table[s] for s in subjects]) for table in (self.mean, self.sd))
        return SubjectStatistics(*(torch.from_numpy(part).float() for part in parts))


def compute_subject_moments(
    read: Callable[[np.ndarray], Features], rows: np.ndarray, subjects: np.ndarray, block: int
) -> SubjectMoments:
    """Compute the mean and SD of an encoder's features over the windows of each subject.

    Args:
        read: Reads the features of windows by row number.
        rows: Windows that have the modality and may be looked at.
        subjects: Whose each of them is.
        block: Windows that are read at once.
    """
    sums: dict[str, FeatureSums] = {}
    for subject in dict.fromkeys(subjects.tolist()):
        own_rows = rows[subjects == subject]
        for start in range(0, len(own_rows), block):
            part = _sum_values(read(own_rows[start : start + block]))
            sums[subject] = sums[subject] + part if subject in sums else part
    return SubjectMoments.from_sums(sums)


def make_subject_inputs(
    subject_statistics: Mapping[str, SubjectMoments], subjects: Sequence[str], present: Mapping[str, np.ndarray]
) -> dict[str, Tensor]:
    """Make what a model's inputs say of the subjects of windows.

    Args:
        subject_statistics: By modality.
        subjects: Whose each window is.
        present: Whether each window has the modality; of one that lacks it any numbers will do, as it is masked.
    """
    inputs: dict[str, Tensor] = {}
    for m, found in subject_statistics.items():
        any_subject = next(iter(found.mean))
        known = [s if has else any_subject for s, has in zip(subjects, present[m], strict=True)]
        statistics = found.get(known, m)
        inputs |= {f"{m}{MEAN_SUFFIX}": statistics.mean_BF, f"{m}{SD_SUFFIX}": statistics.sd_BF}
    return inputs


class NormalisedSource:
    """A source that says with each window what its subject's features are normalised by.

    Args:
        subjects: Whose each row is.
    """

    def __init__(self, source: Source, subject_statistics: Mapping[str, SubjectMoments], subjects: np.ndarray) -> None:
        self.names = source.names
        self._source, self._subject_statistics, self._subjects = source, subject_statistics, subjects

    def get(self, rows: np.ndarray) -> dict[str, Tensor]:
        present = dict(zip(self.names, self._source.get_presence(rows).T, strict=True))
        return self._source.get(rows) | make_subject_inputs(
            self._subject_statistics, self._subjects[rows].tolist(), present
        )

    def get_presence(self, rows: np.ndarray) -> np.ndarray:
        return self._source.get_presence(rows)


def normalise_source(
    source: Source,
    experiment: Experiment,
    shapes: DataShapes,
    windows: WindowCache,
    open_recordings: Callable[[], tuple[WindowCache, tuple[str, ...]]],
    memory: FeatureMemory | None = None,
) -> Source:
    """Let a source of stored windows say what each window's subject is normalised by, where encoders ask for it.

    Args:
        shapes: Of the model.
        windows: What the source is of.
        open_recordings: Opens windows, and names the recordings of the subjects among them; the access level chooses
            of which of them statistics are.
        memory: What was computed of windows already.
    """
    modalities = [m for m in experiment.list_normalised_modalities() if m in source.names]
    if not modalities:
        return source
    opened, recordings = open_recordings()
    accessible = select_accessible_recordings(opened.ids, recordings, experiment.split)
    subject_statistics = {
        m: _compute_stored_moments(experiment, m, shapes, opened, accessible, memory or FeatureMemory(0))
        for m in modalities
    }
    return NormalisedSource(source, subject_statistics, windows.ids["subject"].to_numpy())


def _compute_stored_moments(
    experiment: Experiment,
    modality: str,
    shapes: DataShapes,
    windows: WindowCache,
    recordings: tuple[str, ...],
    memory: FeatureMemory,
) -> SubjectMoments:
    stored = RawSource(
        windows, [modality], channel_orders=find_channel_orders(windows, [modality], shapes.eeg_channel_names)
    )
    rows = windows.find_rows(recordings)
    rows = rows[stored.get_presence(rows)[:, 0]]
    if not len(rows):
        raise DataError(
            f"no recording that split.access={experiment.split.access} lets be looked at has {modality}; take "
            f"{modality} out of data.modalities"
        )
    subjects = windows.ids["subject"].to_numpy()[rows]
    features = StoredFeatures(experiment, modality, shapes, stored, windows, memory)
    read = features.get if experiment.model[modality].is_handcrafted else features.compute
    return compute_subject_moments(read, rows, subjects, features.encoder.statistics_windows)

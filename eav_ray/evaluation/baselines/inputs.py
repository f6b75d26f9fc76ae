"""What baselines read: features and covariances of stored windows, and their normalisation within subjects."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eav_ray.config import Experiment, get_modality_info
from eav_ray.data.modalities.registry import get_modality
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.errors import ConfigError, DataError
from eav_ray.evaluation.baselines.classifiers import KINDS
from eav_ray.evaluation.baselines.regressors import NUMBER_KINDS, REGRESSORS
from eav_ray.training.subject_statistics import FeatureSums

ALL_KINDS = KINDS | NUMBER_KINDS
FUSED = "fused"  # how the names of sources begin that combine modalities
WINDOWS_AT_ONCE = 64  # that are read and measured
# Added to the diagonal of a covariance matrix, square microvolts: so that a flat window has a logarithm. Less than the
# noise of any amplifier.
COVARIANCE_FLOOR = 1e-6


@dataclass(frozen=True)
class Source:
    """A kind of baseline on one modality."""

    kind: str
    modality: str

    @property
    def name(self) -> str:
        """Return how columns of predictions begin."""
        return f"{self.kind}.{self.modality}"

    @property
    def reads_covariances(self) -> bool:
        return ALL_KINDS[self.kind].reads_covariances

    @property
    def title(self) -> str:
        """Return what tables call it, such as "SVM on MFCC + log-mel"."""
        kind, modality = ALL_KINDS[self.kind], get_modality(self.modality)
        read = get_modality_info(self.modality).title if kind.reads_covariances else modality.baseline_title
        return f"{kind.title} on {read}"


def list_baselines(modalities: Sequence[str], kinds: Sequence[str] = (), *, numbers: bool = False) -> list[Source]:
    """List the baselines of some modalities; those that have none are left out.

    Args:
        kinds: Names of `KINDS`, or of `NUMBER_KINDS`; all where there are none.
        numbers: Numbers are predicted, by a regression in the place of each classifier.
    Raises:
        ConfigError: A kind is unknown, or no modality has one.
    """
    known = NUMBER_KINDS if numbers else KINDS
    for kind in kinds:
        if kind not in known:
            raise ConfigError(f"--kinds names {kind}; use any of {', '.join(known)}")
    sources = [
        Source(kind, m)
        for m in modalities
        for classifier in get_modality(m).baseline_kinds
        if (kind := REGRESSORS[classifier] if numbers else classifier) in (kinds or known)
    ]
    if not sources:
        raise ConfigError(
            f"there is no baseline of {', '.join(modalities)}; take other modalities into data.modalities, other "
            "--kinds, or features of others (preprocessing.features)"
        )
    return sources


@dataclass(frozen=True)
class Inputs:
    """What baselines read of one modality.

    Attributes:
        present: (windows,) whether a window has the modality; the others have any numbers.
        features: (windows, features), NaN where nothing is known.
        covariances: (windows, channels, channels), where a kind reads them.
    """

    present: np.ndarray
    features: np.ndarray
    covariances: np.ndarray | None


def compute_inputs(windows: WindowCache, modality: str, experiment: Experiment, *, with_covariances: bool) -> Inputs:
    """Compute what baselines read of every window that has a modality."""
    definition = get_modality(modality)
    present = windows.ids[f"has_{modality}"].to_numpy(bool)
    rows = np.flatnonzero(present)
    features, covariances = [], []
    for start in range(0, len(rows), WINDOWS_AT_ONCE):
        x = windows.get(rows[start : start + WINDOWS_AT_ONCE], modality)
        features.append(definition.compute_baseline_features(x, experiment.preprocessing))
        if with_covariances:
            covariances.append(compute_covariances(x))
    return Inputs(present, _spread(features, present), _spread(covariances, present) if with_covariances else None)


def _spread(parts: list[np.ndarray], present: np.ndarray) -> np.ndarray:
    """Lay the rows of windows that are present out among all windows; the others are NaN."""
    shape = parts[0].shape[1:] if parts else (0,)
    out = np.full((len(present), *shape), np.nan)
    if parts:
        out[present] = np.concatenate(parts)
    return out


def compute_covariances(x_BCT: np.ndarray) -> np.ndarray:
    """Compute covariance matrices of channels, (windows, channels, channels), shrunk by OAS (Chen et al. 2010)."""
    from pyriemann.estimation import Covariances

    return Covariances(estimator="oas").transform(x_BCT.astype(np.float64)) + COVARIANCE_FLOOR * np.eye(x_BCT.shape[1])


def normalise_within_subjects(inputs: Inputs, modality: str, subject: np.ndarray, accessible: np.ndarray) -> Inputs:
    """Bring each subject's windows to common terms, by those that the access level lets be looked at, without labels.

    Features get mean 0 and SD 1. Covariances get the identity as their Riemannian mean (Zanini et al. 2018,
    doi:10.1109/TBME.2017.2742541).

    Args:
        subject: (windows,) whose each is.
        accessible: (windows,) whether statistics may be taken of it (`select_accessible_recordings`).
    Raises:
        DataError: A subject has the modality, and none of it may be looked at.
    """
    features = inputs.features.copy()
    covariances = None if inputs.covariances is None else inputs.covariances.copy()
    for name in dict.fromkeys(subject[inputs.present].tolist()):
        own = inputs.present & (subject == name)
        measured = own & accessible
        if not measured.any():
            raise DataError(
                f"no recording of {name} that split.access lets be looked at has {modality}; leave {name} out by "
                "data.subjects, or set split.access to unlabelled_block or source_only"
            )
        mean, sd = _sum_known(inputs.features[measured]).compute_moments()
        features[own] = (inputs.features[own] - mean) / sd
        if covariances is not None:
            covariances[own] = _recentre(covariances[own], covariances[measured])
    return Inputs(inputs.present, features, covariances)


def _sum_known(x_VF: np.ndarray) -> FeatureSums:
    known = np.isfinite(x_VF)
    x = np.where(known, x_VF, 0)
    return FeatureSums(known.sum(0).astype(np.float64), x.sum(0), np.square(x).sum(0))


def _recentre(covariances: np.ndarray, measured: np.ndarray) -> np.ndarray:
    from pyriemann.geometry.base import invsqrtm
    from pyriemann.geometry.mean import mean_riemann

    whitening = invsqrtm(mean_riemann(measured))
    return whitening @ covariances @ whitening

"""The check of what was fitted to data before training, computed again by arithmetic of its own.

What encoders compute of a window is theirs; which windows it is computed of, and the means and SDs, are done here anew.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eav_ray.config import select_channel_modalities
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.evaluation.leak_audit.checks import LeakCheck, describe_names, judge, leave_open
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import Encoder, Features, SubjectStatistics
from eav_ray.models.layers import FeatureStandardizer
from eav_ray.training.checkpoint_files import Checkpoint
from eav_ray.training.statistics import MAX_STATISTICS_WINDOWS

STATISTICS = "statistics fitted on training rows only"  # name of a check
TOLERANCE_SD = 1e-3  # by which two computations of the same numbers in float32 may differ, in SDs of the data
NO_SPREAD = 1e-6  # SD, relative to the mean, of what never changes
BLOCK = 64  # windows that are in memory at once
TRAINING, WITH_TEST = "the training rows alone", "training and test rows together"


@dataclass(frozen=True)
class Moments:
    """Mean and SD of each channel or feature: (features,) float64 each."""

    mean: np.ndarray
    sd: np.ndarray

    def measure_distance(self, other: "Moments") -> float:
        """Measure how far other numbers are off these, at most over the features, in SDs; infinite in another shape.

        Features without spread are left out: dividing by their SD would make anything of them.
        """
        if other.mean.shape != self.mean.shape:
            return np.inf
        moves = self.sd > NO_SPREAD * (1 + np.abs(self.mean))
        if not moves.any():
            return 0.0
        errors = np.abs(np.stack([other.mean - self.mean, other.sd - self.sd]))[:, moves] / self.sd[moves]
        return float(np.nan_to_num(errors, nan=np.inf).max())


@dataclass(frozen=True)
class StoredStatistics:
    """A mean and an SD among a checkpoint's weights, and how to compute them of rows.

    Attributes:
        name: Of the tensors: `<name>.mean` and `<name>.sd`.
        compute: The same of the windows of recordings; None where there are none.
    """

    name: str
    modality: str
    values: Moments
    compute: Callable[[Sequence[str]], Moments | None]


def audit_statistics(
    checkpoint: Checkpoint, trained_on: Sequence[str], tested_on: Sequence[str], windows: WindowCache
) -> LeakCheck:
    """Means and SDs among the weights are those of the training rows alone.

    A check that passes must be able to fail: where the test rows would not have changed the numbers, it cannot tell.

    Args:
        trained_on: Recordings that the statistics should be of.
        tested_on: Recordings that they must not be of; none of a final model, which nothing tests.
    """
    if absent := {*trained_on, *tested_on} - set(windows.ids["id"]):
        return leave_open(STATISTICS, f"the windows of {describe_names(absent)} are not at hand")
    stored, open_reasons = list_stored_statistics(checkpoint, windows)
    if not stored and not open_reasons:
        return leave_open(STATISTICS, "its encoders have no statistics of data, so there is nothing to compare")
    differing: list[str] = []
    settled: list[str] = []
    margins: list[float] = []
    for one in stored:
        own, with_test = one.compute(trained_on), one.compute((*trained_on, *tested_on))
        if own is None or with_test is None:
            open_reasons.append(f"no training row has {one.modality}, which {one.name} is of")
            continue
        distance, margin = own.measure_distance(one.values), own.measure_distance(with_test)
        if distance > TOLERANCE_SD:
            is_leak = with_test.measure_distance(one.values) <= TOLERANCE_SD
            match = f"match {WITH_TEST}" if is_leak and tested_on else f"do not match {WITH_TEST} either"
            differing.append(f"{one.name} is off {TRAINING} by up to {distance:.3g} SD; its numbers {match}")
        elif tested_on and margin <= 2 * TOLERANCE_SD:
            open_reasons.append(
                f"{one.name} would be the same with test rows among the training rows (to {margin:.2g} SD)"
            )
        else:
            settled.append(one.name)
            margins.append(margin)
    if differing or not open_reasons:
        otherwise = f"{', '.join(settled)}: those of {TRAINING}"
        if tested_on:
            otherwise += f"; test rows among them would move each by {min(margins, default=0):.2g} SD or more"
        return judge(STATISTICS, "; ".join(differing), otherwise)
    return leave_open(STATISTICS, "; ".join(open_reasons))


def list_stored_statistics(checkpoint: Checkpoint, windows: WindowCache) -> tuple[list[StoredStatistics], list[str]]:
    """List the means and SDs among a checkpoint's weights, and what else is fitted to data and cannot be compared."""
    torch.manual_seed(0)
    model = Classifier(checkpoint.experiment, checkpoint.state.shapes)
    # Encoders standardise by what is stored, so that a fault in one number shows there and not in all that follow.
    model.load_state_dict(checkpoint.weights, strict=False)
    stored: list[StoredStatistics] = []
    open_reasons: list[str] = []

    def add(name: str, modality: str, compute: Callable[[Sequence[str]], Moments | None]) -> None:
        tensors = [checkpoint.weights.get(f"{name}.{part}") for part in ("mean", "sd")]
        mean, sd = (None if t is None else t.double().numpy() for t in tensors)
        if mean is None or sd is None:
            open_reasons.append(f"{name} is not among its weights")
        else:
            stored.append(StoredStatistics(name, modality, Moments(mean, sd), compute))

    for m in model.modalities:
        encoder = model.encoders[m]
        assert isinstance(encoder, Encoder)
        if select_channel_modalities([m]) and encoder.standardises_channels:
            add("normalise", m, lambda ids, m=m: compute_channel_moments(windows, m, ids))
        standardizers = {n: s for n, s in encoder.named_modules() if isinstance(s, FeatureStandardizer)}
        is_normalised = m in model.subject_normalised and bool(standardizers)
        subjects = compute_subject_moments(model, m, windows, checkpoint) if is_normalised else {}
        for name, module in standardizers.items():
            add(
                f"encoders.{m}.{name}",
                m,
                lambda ids, m=m, module=module, subjects=subjects: compute_feature_moments(
                    model, m, module, windows, ids, subjects
                ),
            )
        if not standardizers and type(encoder).fit_statistics is not Encoder.fit_statistics:
            open_reasons.append(f"{type(encoder).__name__} of {m} fits itself in a way that cannot be computed again")
    return stored, open_reasons


def compute_channel_moments(windows: WindowCache, modality: str, recordings: Sequence[str]) -> Moments | None:
    """Compute mean and SD of each channel over all windows of recordings; None where none has the modality."""
    rows = _select_rows(windows, modality, recordings)
    blocks = (windows.get(part, modality) for part in _split(rows))
    return merge_moments(x_BCT.transpose(0, 2, 1).reshape(-1, x_BCT.shape[1]) for x_BCT in blocks)


def compute_subject_moments(
    model: Classifier, modality: str, windows: WindowCache, checkpoint: Checkpoint
) -> dict[str, Moments]:
    """Compute what each subject is normalised by: mean and SD of features over the recordings that are accessible."""
    access, split = checkpoint.experiment.split, checkpoint.split
    of_split = {*split.train, *split.validation, *split.test}
    each = windows.ids[windows.ids["id"].isin(of_split)].drop_duplicates("id").sort_values(["subject", "order", "id"])
    n = len(each) if access.access == "unlabelled_block" else access.access_recordings
    encoder = model.encoders[modality]
    assert isinstance(encoder, Encoder)
    found: dict[str, Moments] = {}
    for subject, own in each.groupby("subject")["id"]:
        rows = _select_rows(windows, modality, own.head(n).tolist())
        with torch.no_grad():
            blocks = [encoder.compute_features(torch.from_numpy(windows.get(b, modality))) for b in _split(rows)]
        own_moments = merge_moments(_mask_unknown(features.values, features.expand_known()) for features in blocks)
        if own_moments is not None:
            spread = own_moments.sd > NO_SPREAD * (1 + np.abs(own_moments.mean))
            found[str(subject)] = Moments(own_moments.mean, np.where(spread, own_moments.sd, 1))
    return found


def _mask_unknown(values: Tensor, known: Tensor) -> np.ndarray:
    """(rows, features), NaN where a feature is not known."""
    x = torch.where(known, values, torch.nan).detach().cpu().numpy()
    return x.reshape(-1, x.shape[-1])


def compute_feature_moments(
    model: Classifier,
    modality: str,
    standardizer: FeatureStandardizer,
    windows: WindowCache,
    recordings: Sequence[str],
    subjects: Mapping[str, Moments],
) -> Moments | None:
    """Compute mean and SD of what an encoder gives its standardiser, over as many windows as a training takes.

    The encoder is asked to fit itself, and what would be fitted is kept instead.

    Args:
        subjects: What each subject is normalised by; nothing where the encoder does not normalise within subjects.
    """
    rows = _select_rows(windows, modality, recordings)
    if len(rows) > MAX_STATISTICS_WINDOWS:
        rows = rows[np.linspace(0, len(rows) - 1, MAX_STATISTICS_WINDOWS).astype(int)]
    encoder = model.encoders[modality]
    assert isinstance(encoder, Encoder)
    kept: list[np.ndarray] = []

    def keep(batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        kept.extend(_mask_unknown(values, known) for values, known in batches)

    def read(part: np.ndarray) -> tuple[Tensor | Features, SubjectStatistics | None]:
        x = model.prepare_input({modality: torch.from_numpy(windows.get(part, modality))}, modality)
        if not subjects:
            return x, None
        own = [subjects[s] for s in windows.ids["subject"].to_numpy()[part]]
        stacked = (np.stack([getattr(one, name) for one in own]) for name in ("mean", "sd"))
        return x, SubjectStatistics(*(torch.from_numpy(values).float() for values in stacked))

    standardizer.fit_features = keep  # of this object alone, which is thrown away with the model
    with torch.no_grad():
        encoder.fit_statistics(read(part) for part in _split(rows))
    return merge_moments(kept)


def merge_moments(blocks: Iterable[np.ndarray]) -> Moments | None:
    """Compute mean and SD of the columns of blocks of rows, NaN left out; None where there is nothing else.

    In float64, each block about its own mean, and merged (Chan, Golub and LeVeque 1983): nothing cancels where a mean
    is large beside its SD.
    """
    count, mean, squares = (np.zeros(1) for _ in range(3))
    for block in blocks:
        x = block.astype(np.float64)
        known = ~np.isnan(x)
        n = known.sum(0)
        block_mean = np.where(known, x, 0).sum(0) / np.maximum(n, 1)
        block_squares = np.where(known, np.square(x - block_mean), 0).sum(0)
        shift, total = block_mean - mean, np.maximum(count + n, 1)
        squares = squares + block_squares + np.square(shift) * count * n / total
        mean, count = mean + shift * n / total, count + n
    return Moments(mean, np.sqrt(squares / np.maximum(count, 1))) if count.any() else None


def _select_rows(windows: WindowCache, modality: str, recordings: Sequence[str]) -> np.ndarray:
    is_of_them = windows.ids["id"].isin(set(recordings)).to_numpy()
    return np.flatnonzero(is_of_them & windows.ids[f"has_{modality}"].to_numpy())


def _split(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[at : at + BLOCK] for at in range(0, len(rows), BLOCK))

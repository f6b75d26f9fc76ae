"""Score predicted numbers per subject, with intervals over people. Windows and recordings are never the unit.

A subject's CCC and Pearson say how well a source orders and places the recordings of one person; their mean over people
is the level `within`. Where nobody's targets differ, as with one recording or one score of a questionnaire a person,
what is left is how well people are told apart: the level `between`, over each subject's mean. Runs without torch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from eav_ray.config import order_modalities
from eav_ray.data.recordings import TARGET_PREFIX
from eav_ray.evaluation.statistics import Interval, compute_half_width, compute_mean_and_sd
from eav_ray.training.metrics import (
    ALWAYS_PRESENT_SOURCES,
    MEAN_SOURCE,
    RECORDING_COLUMNS,
    VALUE_PREFIX,
    average_per_recording,
    list_truth_columns,
)
from eav_ray.training.number_scores import (
    COMPUTED_TOLERANCE,
    MIN_RECORDINGS,
    compute_ccc,
    compute_pearson,
    compute_rmse,
    differ,
    has_differing_targets,
)

Level = Literal["within", "between"]
CONSTANT_SOURCE = "constant"  # the mean of the targets that a fold was trained on, whatever the recording

CORRELATIONS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"ccc": compute_ccc, "pearson": compute_pearson}


def list_number_sources(modalities: Sequence[str], windows: pd.DataFrame | None = None) -> list[str]:
    """List what predictions of these modalities are accounted for by, in the order of tables, the main one last.

    Args:
        windows: The predictions; where they have the constant prediction (`add_constant_source`), it comes first.
    """
    has_constant = windows is not None and f"{CONSTANT_SOURCE}.{VALUE_PREFIX}0" in windows
    combined = (MEAN_SOURCE, "fusion") if len(modalities) > 1 else ()
    return [*([CONSTANT_SOURCE] if has_constant else []), *order_modalities(modalities), *combined]


def add_constant_source(
    windows: pd.DataFrame, ids: pd.DataFrame, train_ids_by_fold: Mapping[int, Sequence[str]]
) -> pd.DataFrame:
    """Add what a constant prediction gives: the mean of the targets over the recordings that a fold was trained on.

    Args:
        windows: Predictions, with a column `fold`.
        ids: One row a window, as `WindowCache.ids`: `id` and the targets of the recordings that were trained on.
        train_ids_by_fold: The recordings of the training side of each fold.
    """
    columns = list_truth_columns(windows)
    recordings = ids.drop_duplicates("id").set_index("id")[columns]
    means = {fold: recordings.loc[recordings.index.isin(own)].mean() for fold, own in train_ids_by_fold.items()}
    added = {
        f"{CONSTANT_SOURCE}.{VALUE_PREFIX}{k}": windows["fold"].map({fold: mean[c] for fold, mean in means.items()})
        for k, c in enumerate(columns)
    }
    return windows.assign(**added)


def average_numbers(windows: pd.DataFrame, sources: Sequence[str]) -> pd.DataFrame:
    """One row a recording: subject, recording, `target_<k>`, and `<source>.value_<k>`, the mean over its windows.

    A source that speaks of every window is NaN where one of a recording's windows is not finite: the model has
    diverged, and what is left of it must not pass for its answer.
    """
    values = [f"{s}.{VALUE_PREFIX}{k}" for s in sources for k in range(len(list_truth_columns(windows)))]
    finite = windows.assign(**{c: windows[c].where(np.isfinite(windows[c])) for c in values})
    table = average_per_recording(finite)[[*RECORDING_COLUMNS, *list_truth_columns(windows), *values]]
    diverged = [c for c in values if is_always_present(c.partition(f".{VALUE_PREFIX}")[0])]
    keys = [finite[c] for c in RECORDING_COLUMNS]
    complete = finite[diverged].notna().groupby(keys).all().loc[pd.MultiIndex.from_frame(table[RECORDING_COLUMNS])]
    return table.assign(**{c: table[c].where(complete[c].to_numpy()) for c in diverged})


def is_always_present(source: str) -> bool:
    """Whether a source speaks of every window, so that one without a number has diverged."""
    return source in ALWAYS_PRESENT_SOURCES or source == CONSTANT_SOURCE


def select_pairs(recordings: pd.DataFrame, source: str, position: int) -> pd.DataFrame:
    """Select what of one target is compared: `subject`, `predicted` and `true`.

    Recordings without a target do not count, and of a modality those without it. Of a source that speaks of every
    recording all others count, though it be NaN.

    Args:
        recordings: From `average_numbers`.
        position: Of the target.
    """
    table = pd.DataFrame(
        {
            "subject": recordings["subject"],
            "predicted": recordings[f"{source}.{VALUE_PREFIX}{position}"].astype(np.float64),
            "true": recordings[f"{TARGET_PREFIX}{position}"].astype(np.float64),
        }
    )
    known = table["true"].notna()
    return table[known if is_always_present(source) else known & table["predicted"].notna()]


def find_level(recordings: pd.DataFrame, position: int) -> Level:
    """Find the level that a target is judged at, by the true numbers alone: `within`, where anybody's differ."""
    known = recordings[recordings[f"{TARGET_PREFIX}{position}"].notna()]
    by_subject = known.groupby("subject")[f"{TARGET_PREFIX}{position}"]
    return "within" if any(has_differing_targets(true.to_numpy()) for _, true in by_subject) else "between"


def score_subjects(pairs: pd.DataFrame) -> pd.DataFrame:
    """Score each subject over their recordings: one row a subject.

    Args:
        pairs: From `select_pairs`.
    Returns:
        `recordings`; `ccc` and `pearson`, NaN where they are not defined; `rmse` and `bias` (predicted less true), in
        the unit of the target; `counts`, whether the true numbers differ enough for CCC and Pearson.
    """
    rows = {}
    for subject, own in pairs.groupby("subject", sort=True):
        predicted, true = own["predicted"].to_numpy(), own["true"].to_numpy()
        counts = has_differing_targets(true)
        correlations = {
            name: measure(predicted, true) if counts else math.nan for name, measure in CORRELATIONS.items()
        }
        bias = float((predicted - true).mean())
        rows[str(subject)] = {"recordings": len(own), **correlations} | {
            "rmse": compute_rmse(predicted, true),
            "bias": bias,
            "counts": counts,
        }
    columns = ["recordings", *CORRELATIONS, "rmse", "bias", "counts"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).astype({"counts": bool}).rename_axis("subject")


def average_correlation(subject_scores: pd.DataFrame, measure: str) -> Interval:
    """Average CCC or Pearson over the people who have one, with the interval of `compute_correlation_interval`.

    Who counts depends on the true numbers alone: a source that diverged for one of them has no mean.
    """
    values = subject_scores.loc[subject_scores["counts"], measure].to_numpy(float)
    return compute_correlation_interval(values) if len(values) else Interval(*[math.nan] * 4)


def average_rmse(subject_scores: pd.DataFrame) -> Interval:
    """Average RMSE over people, with the interval of `compute_positive_interval`."""
    values = subject_scores["rmse"].to_numpy(float)
    return compute_positive_interval(values) if len(values) else Interval(*[math.nan] * 4)


def compute_correlation_interval(values: np.ndarray) -> Interval:
    """Compute the interval of a mean of numbers between -1 and 1: Student's t on Fisher's z scale, by the delta method.

    Args:
        values: One a subject.
    """
    mean, sd = compute_mean_and_sd(values)
    if not -1 < mean < 1:
        return Interval(mean, sd, math.nan, math.nan)
    center, half_width = math.atanh(mean), compute_half_width(sd, len(values)) / (1 - mean**2)
    return Interval(mean, sd, math.tanh(center - half_width), math.tanh(center + half_width))


def compute_positive_interval(values: np.ndarray) -> Interval:
    """Compute the interval of a mean of positive numbers: Student's t on the scale of logarithms, by the delta method.

    Args:
        values: One a subject, such as their RMSE.
    """
    mean, sd = compute_mean_and_sd(values)
    if not mean > 0:
        return Interval(mean, sd, math.nan, math.nan)
    half_width = compute_half_width(sd / mean, len(values))  # of the logarithm, whatever the unit
    return Interval(mean, sd, mean * math.exp(-half_width), mean * math.exp(half_width))


def score_between_subjects(pairs: pd.DataFrame) -> dict[str, Interval]:
    """Score the subjects' mean predictions against their mean targets: `ccc` and `pearson`, each with its interval
    (`compute_jackknife_interval`).

    Args:
        pairs: From `select_pairs`.
    """
    means = pairs.groupby("subject")[["predicted", "true"]].mean()
    # Of a source that diverged for a subject, what is left is not its answer.
    diverged = pairs["predicted"].isna().groupby(pairs["subject"]).any()
    means = means.assign(predicted=means["predicted"].mask(diverged)).to_numpy(float)
    return {name: compute_jackknife_interval(means, measure) for name, measure in CORRELATIONS.items()}


def compute_jackknife_interval(means_S2: np.ndarray, measure: Callable[[np.ndarray, np.ndarray], float]) -> Interval:
    """Compute a correlation over people, and its interval by a jackknife on Fisher's z scale, by Student's t.

    There is no SD over people, as nobody has a value of their own.

    Args:
        means_S2: A predicted and a true number a person.
    """
    n = len(means_S2)
    if not has_differing_targets(means_S2[:, 1]):
        return Interval(*[math.nan] * 4)
    whole = measure(*means_S2.T)
    without_one = np.array([measure(*np.delete(means_S2, k, axis=0).T) for k in range(n)])
    if not np.isfinite(without_one).all() or not (np.abs([whole, *without_one]) < 1).all():
        return Interval(whole, math.nan, math.nan, math.nan)
    z = math.atanh(whole)
    half_width = compute_half_width(float(np.std(n * z - (n - 1) * np.arctanh(without_one), ddof=1)), n)
    return Interval(whole, math.nan, math.tanh(z - half_width), math.tanh(z + half_width))


def compute_calibration(pairs: pd.DataFrame) -> dict[str, float]:
    """Compute how predictions are placed, over all recordings: `slope` of true on predicted numbers, and `bias`.

    A slope of 1 is right; below it predictions are spread too far, above it too little. NaN of a constant prediction.
    """
    predicted, true = pairs["predicted"].to_numpy(), pairs["true"].to_numpy()
    if not len(true) or not np.isfinite(predicted).all():
        return {"slope": math.nan, "bias": math.nan}
    spread = predicted - predicted.mean()
    varies = len(true) >= MIN_RECORDINGS and differ(predicted, COMPUTED_TOLERANCE)
    slope = float((spread * true).sum() / np.square(spread).sum()) if varies else math.nan
    return {"slope": slope, "bias": float((predicted - true).mean())}

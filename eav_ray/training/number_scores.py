"""Measures of predicted numbers against true ones, over the recordings of a subject, or over subjects."""

import numpy as np
import pandas as pd

COMPUTED_TOLERANCE = 1e-6  # models compute in single precision: what differs by less is one number
MIN_RECORDINGS = 3  # of a subject, from which a correlation over them says anything: of two it is always 1 or -1


def compute_ccc(predicted: np.ndarray, true: np.ndarray) -> float:
    """Compute the concordance correlation coefficient (Lin 1989, doi:10.2307/2532051), with variances over n.

    Returns:
        1 where all are equal, 0 of a constant prediction; NaN where the true numbers do not differ, or there are fewer
        than 3, or one is not finite.
    """
    if not _is_defined(predicted, true):
        return np.nan
    predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if not differ(predicted, COMPUTED_TOLERANCE):
        return 0.0
    covariance = ((predicted - predicted.mean()) * (true - true.mean())).mean()
    return float(2 * covariance / (predicted.var() + true.var() + (predicted.mean() - true.mean()) ** 2))


def compute_pearson(predicted: np.ndarray, true: np.ndarray) -> float:
    """Compute Pearson's correlation.

    Returns:
        0 of a constant prediction, so that a collapsed model does not drop out of a mean; NaN as of `compute_ccc`.
    """
    if not _is_defined(predicted, true):
        return np.nan
    predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if not differ(predicted, COMPUTED_TOLERANCE):
        return 0.0
    return float(np.corrcoef(predicted, true)[0, 1])


def compute_rmse(predicted: np.ndarray, true: np.ndarray) -> float:
    """Compute the root of the mean squared error, in the unit of the target; NaN where there is nothing."""
    if not len(true):
        return np.nan
    return float(np.sqrt(np.square(np.asarray(predicted, np.float64) - np.asarray(true, np.float64)).mean()))


def _is_defined(predicted: np.ndarray, true: np.ndarray) -> bool:
    is_finite = np.isfinite(predicted).all() and np.isfinite(true).all()
    return bool(is_finite and has_differing_targets(true))


def differ(values: np.ndarray, tolerance: float = 1e-9) -> bool:
    """Tell whether numbers differ by more than rounding, a share of the largest."""
    return len(values) > 0 and float(np.ptp(values)) > tolerance * float(np.abs(values).max())


def has_differing_targets(true: np.ndarray) -> bool:
    """Tell whether a subject's true numbers are enough, and different enough, for a correlation over them."""
    return len(true) >= MIN_RECORDINGS and differ(true)


def score_numbers(values_RK: np.ndarray, true_RK: np.ndarray, subject_R: np.ndarray) -> dict[str, float]:
    """Score predicted numbers, (recordings, targets), by which models are chosen: means over targets.

    CCC and Pearson are the mean over the subjects whose targets differ, or, where no subject's do, as where there is
    one recording of each, those of the subjects' means. Of fewer than 3 subjects without either they are those of all
    recordings.

    Args:
        subject_R: Whose recording each is.
    Returns:
        `ccc`, `pearson`, `rmse`; NaN where a prediction is not finite.
    """
    found = [_score_target(values_RK[:, k], true_RK[:, k], subject_R) for k in range(true_RK.shape[1])]
    return {name: float(np.mean([each[name] for each in found])) for name in ("ccc", "pearson", "rmse")}


def _score_target(value_R: np.ndarray, true_R: np.ndarray, subject_R: np.ndarray) -> dict[str, float]:
    table = pd.DataFrame({"subject": subject_R, "value": value_R, "true": true_R})
    groups = [(own["value"].to_numpy(), own["true"].to_numpy()) for _, own in table.groupby("subject")]
    rmse = float(np.mean([compute_rmse(value, true) for value, true in groups])) if groups else np.nan
    # Who counts depends on the truth alone: a model that fails for a subject must not lose them.
    within = [pair for pair in groups if has_differing_targets(pair[1])]
    if within:
        ccc, pearson = (float(np.mean([measure(*p) for p in within])) for measure in (compute_ccc, compute_pearson))
        return {"ccc": ccc, "pearson": pearson, "rmse": rmse}
    means = table.groupby("subject")[["value", "true"]].mean()
    if has_differing_targets(means["true"].to_numpy()):
        value_R, true_R = means["value"].to_numpy(), means["true"].to_numpy()
    return {"ccc": compute_ccc(value_R, true_R), "pearson": compute_pearson(value_R, true_R), "rmse": rmse}

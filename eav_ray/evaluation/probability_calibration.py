"""Whether a model is as sure as it is right: reliability, expected calibration error, one temperature."""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from eav_ray.training.metrics import LOGIT_PREFIX, average_per_recording, select_logits

N_BINS = 10
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


def compute_reliability(logits_NK: np.ndarray, label_N: np.ndarray, temperature: float = 1.0) -> dict[str, object]:
    """Guo et al. 2017 (arXiv 1706.04599): confidence against accuracy in bins of equal width.

    Args:
        logits_NK: Of each recording; rows that are not finite, of a source that said nothing, do not count.
        temperature: Logits are divided by it.
    Returns:
        `ece` (mean gap between confidence and accuracy, weighted by the bins' counts), `nll` (nats), `brier`, `count`,
        and `bins`: for each that has any, `count`, mean `confidence` and `accuracy`.
    """
    known = np.isfinite(logits_NK).all(1)
    logits, label = logits_NK[known] / temperature, label_N[known]
    if not len(label):
        return {"ece": None, "nll": None, "brier": None, "count": 0, "bins": []}
    p = softmax(logits, axis=1)
    confidence, correct = p.max(1), p.argmax(1) == label
    bin_index = np.minimum((confidence * N_BINS).astype(int), N_BINS - 1)
    bins = [
        {
            "count": int((bin_index == b).sum()),
            "confidence": float(confidence[bin_index == b].mean()),
            "accuracy": float(correct[bin_index == b].mean()),
        }
        for b in np.unique(bin_index)
    ]
    one_hot = np.eye(p.shape[1])[label]
    return {
        "ece": sum(b["count"] * abs(b["confidence"] - b["accuracy"]) for b in bins) / len(label),
        "nll": float(-log_softmax(logits, axis=1)[np.arange(len(label)), label].mean()),
        "brier": float(np.square(p - one_hot).sum(1).mean()),
        "count": len(label),
        "bins": bins,
    }


def fit_temperature(logits_NK: np.ndarray, label_N: np.ndarray) -> float:
    """The one number that logits are divided by to make the labels most likely.

    Args:
        logits_NK, label_N: Of validation recordings: never of those that are tested.
    Returns:
        NaN where no row has logits.
    """
    known = np.isfinite(logits_NK).all(1)
    logits, label = logits_NK[known], label_N[known]
    if not len(label):
        return float("nan")

    def compute_loss(log_t: float) -> float:
        return float(-log_softmax(logits / np.exp(log_t), axis=1)[np.arange(len(label)), label].mean())

    result = minimize_scalar(compute_loss, bounds=(np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)), method="bounded")
    return float(np.exp(result.x))


def summarize_calibration(
    windows: pd.DataFrame, sources: list[str], validation: pd.DataFrame | None
) -> dict[str, object]:
    """Of each source: reliability on the tested recordings, and after a temperature that validation rows gave.

    Args:
        windows: Predictions of the test rows, with a column `fold`.
        validation: Of each fold's validation rows by its own model, with a column `fold`; None where there are none.
    """
    tested = average_windows_per_fold(windows)
    results: dict[str, object] = {}
    for source in sources:
        logits, label = select_logits(tested, source), tested["label"].to_numpy()
        result: dict[str, object] = {"raw": compute_reliability(logits, label)}
        # Of stacking, which is fitted on these rows, there is none: it is as sure as it was right on them.
        if validation is not None and f"{source}.{LOGIT_PREFIX}0" in validation:
            validation_recordings = average_windows_per_fold(validation)
            scale, temperatures = np.ones(len(tested)), {}
            for fold, fold_recordings in validation_recordings.groupby("fold"):
                temperature = fit_temperature(
                    select_logits(fold_recordings, source), fold_recordings["label"].to_numpy()
                )
                if np.isfinite(temperature):  # else, of a source that no validation row has, it stays as it is
                    temperatures[str(fold)] = temperature
                    scale[(tested["fold"] == fold).to_numpy()] = temperature
            result |= {"scaled": compute_reliability(logits / scale[:, None], label), "temperatures": temperatures}
        results[source] = result
    return results


def average_windows_per_fold(windows: pd.DataFrame) -> pd.DataFrame:
    """`average_per_recording`, fold by fold, with the column `fold`."""
    parts = [average_per_recording(fold_windows).assign(fold=fold) for fold, fold_windows in windows.groupby("fold")]
    return pd.concat(parts, ignore_index=True)

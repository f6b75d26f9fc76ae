"""Scores per window and per recording. A recording's logits are the mean of its windows' logits. Runs without torch.

Where numbers are predicted in place of classes, a table has `<source>.value_<k>` in place of logits, in the units of
the targets, and the true numbers in `target_<k>` in place of `label`.

That holds for every source, the rules of fusion included: a rule combines the modalities of each window, and the
windows of a recording are then averaged as they are for a single modality, so that two rows of a table that differ by
their rule differ by nothing else. `mean_probability` of a recording is therefore the geometric mean over its windows of
the arithmetic mean over its modalities.
"""

import numpy as np
import pandas as pd
from scipy.special import log_softmax, logsumexp

from eav_ray.data.recordings import TARGET_PREFIX
from eav_ray.training.number_scores import score_numbers

Scores = dict[str, float]
RECORDING_COLUMNS = ["subject", "recording"]  # that name a recording in tables of predictions
WINDOW_COLUMNS = [*RECORDING_COLUMNS, "window"]
LOGIT_PREFIX = "logit_"
VALUE_PREFIX = "value_"  # after the name of a source: a number that it predicts
FRAMES_CORRECT_SUFFIX = (
    ".frames_correct"  # after the name of a source: share of a window's frames that are right (`training.frames`)
)
RULE_SOURCES = ("mean_probability", "product")  # of modalities without training: `combine_by_rules`
MEAN_SOURCE = "mean"  # of the numbers that the modalities of a window predict
STACKING = "stacking"  # a logistic regression on what the modalities say: `evaluation.stacking`
# Sources that speak of every window; a modality says nothing where it is absent.
ALWAYS_PRESENT_SOURCES = ("fusion", *RULE_SOURCES, MEAN_SOURCE, STACKING)


def combine_by_rules(logits_BMK: np.ndarray, present_BM: np.ndarray) -> dict[str, np.ndarray]:
    """Fuse the modalities of each window by the rules that train nothing: a name of `RULE_SOURCES` -> (batch, classes).

    `mean_probability` is the logarithm of the mean of the probabilities, so that its softmax is that mean. `product` is
    the mean of the log probabilities: its softmax is their normalised geometric mean. Kittler's product rule (1998,
    doi:10.1109/34.667881; all classes equally likely) has their sum in place of the mean. It names the same class of a
    window, but is as many times surer as there are modalities, as if they erred independently. The mean stays
    comparable with one modality, and between windows that have more and fewer of them.

    Args:
        logits_BMK: Unimodal logits.
        present_BM: Which modalities a window has: the others weigh nothing, whatever their logits, NaN included.
    Returns:
        NaN where a window has no modality, or one that it has is not finite: that model has diverged.
    """
    present = present_BM[..., None]
    log_p_BMK = log_softmax(np.where(present & np.isfinite(logits_BMK), logits_BMK, 0).astype(np.float64), axis=-1)
    n_present_B1 = present_BM.sum(1, keepdims=True)
    known_B1 = (np.isfinite(logits_BMK) | ~present).all(-1).all(-1, keepdims=True) & (n_present_B1 > 0)
    n_B1 = np.maximum(n_present_B1, 1)
    combined = {
        "mean_probability": logsumexp(log_p_BMK, axis=1, b=present) - np.log(n_B1),
        "product": np.where(present, log_p_BMK, 0).sum(1) / n_B1,
    }
    return {rule: np.where(known_B1, x_BK, np.nan).astype(logits_BMK.dtype) for rule, x_BK in combined.items()}


def average_values(values_BMK: np.ndarray, present_BM: np.ndarray) -> np.ndarray:
    """Average what the modalities of each window predict, where that is numbers: (batch, targets).

    Args:
        present_BM: Which modalities a window has: the others weigh nothing, whatever their values, NaN included.
    Returns:
        NaN where a window has no modality, or one that it has is not finite: that model has diverged.
    """
    total = np.where(present_BM[..., None], values_BMK, 0).astype(np.float64).sum(1)
    n_present = present_BM.sum(1, keepdims=True)
    mean = np.divide(total, n_present, out=np.full_like(total, np.nan), where=n_present > 0)
    return np.where(np.isfinite(mean).all(1, keepdims=True), mean, np.nan).astype(values_BMK.dtype)


def is_averaged_column(column: str) -> bool:
    """Whether a recording has the mean of its windows in this column."""
    is_output = LOGIT_PREFIX in column or f".{VALUE_PREFIX}" in column
    return is_output or column.startswith(("weight.", "corrected."))


def holds_numbers(table: pd.DataFrame) -> bool:
    """Whether predictions are numbers, and not classes."""
    return f"fusion.{VALUE_PREFIX}0" in table


def list_output_sources(table: pd.DataFrame) -> list[str]:
    """List the sources that a table of predictions has logits or numbers of, in its order."""
    ends = (f".{LOGIT_PREFIX}0", f".{VALUE_PREFIX}0")
    return [c.rpartition(".")[0] for c in table.columns if c.endswith(ends)]


def list_modality_sources(table: pd.DataFrame) -> list[str]:
    """List the modalities that a table of predictions speaks of, in its order."""
    return [source for source in list_output_sources(table) if source not in ALWAYS_PRESENT_SOURCES]


def list_truth_columns(table: pd.DataFrame) -> list[str]:
    """List the columns with what is true of a recording: the label, or the targets in their order."""
    targets = [c for c in table.columns if c.startswith(TARGET_PREFIX)]
    return sorted(targets, key=lambda c: int(c.removeprefix(TARGET_PREFIX))) or ["label"]


def average_per_recording(windows: pd.DataFrame) -> pd.DataFrame:
    """One row a recording: subject, recording, what is true of it, and the mean of every output and weight column.

    Columns are `<source>.logit_<class>` or `<source>.value_<target>`, and `weight.<modality>`, as
    `predictions.build_predictions` makes them. A recording's windows in which a source has nothing to say (NaN) do not
    count for it.
    """
    means = [c for c in windows.columns if is_averaged_column(c)]
    keys = [*RECORDING_COLUMNS, *list_truth_columns(windows)]
    return windows.groupby(keys, sort=True, dropna=False)[means].mean().reset_index()


def predict_classes(table: pd.DataFrame, source: str) -> np.ndarray:
    """Class with the highest logit of one source (`fusion`, `product`, `audio`, ...); -1 where it has none."""
    return _select_best_classes(select_logits(table, source))


def _select_best_classes(logits: np.ndarray) -> np.ndarray:
    known = np.isfinite(logits).all(1)
    best = np.full(len(logits), -1)
    best[known] = logits[known].argmax(1)
    return best


def select_logits(table: pd.DataFrame, source: str) -> np.ndarray:
    """(rows, classes) of one source; NaN where it has nothing to say."""
    return _select_outputs(table, f"{source}.{LOGIT_PREFIX}")


def select_values(table: pd.DataFrame, source: str) -> np.ndarray:
    """(rows, targets), the numbers that one source predicts; NaN where it has nothing to say."""
    return _select_outputs(table, f"{source}.{VALUE_PREFIX}")


def _select_outputs(table: pd.DataFrame, start: str) -> np.ndarray:
    columns = [c for c in table.columns if c.startswith(start)]
    return table[sorted(columns, key=lambda c: int(c.rsplit("_", 1)[1]))].to_numpy()


def compute_scores(windows: pd.DataFrame, source: str = "fusion") -> Scores:
    """Compute accuracy and balanced accuracy per window and per recording; of numbers CCC, Pearson and RMSE.

    `score` is what models are chosen by: the balanced accuracy, or the CCC, of recordings (`number_scores`).

    All are NaN where a source that speaks of every window has a logit that is not finite: the model has diverged, and
    a score, were it 0, would count in a search.
    """
    recording = windows.groupby(RECORDING_COLUMNS).ngroup().to_numpy()
    if holds_numbers(windows):
        true_VK, subject = windows[list_truth_columns(windows)].to_numpy(float), windows["subject"].to_numpy()
        return compute_scores_from_values(select_values(windows, source), true_VK, recording, subject)
    label = windows["label"].to_numpy()
    return compute_scores_from_logits(
        select_logits(windows, source), label, recording, always_present=source in ALWAYS_PRESENT_SOURCES
    )


def compute_scores_from_logits(
    logits_VK: np.ndarray, label_V: np.ndarray, recording_V: np.ndarray, *, always_present: bool
) -> Scores:
    """`scores` of arrays.

    Args:
        recording_V: The number, from 0, of each window's recording.
        always_present: The logits are of a source that speaks of every window.
    """
    result: Scores = {}
    means, first = _average_logits(logits_VK, recording_V), np.unique(recording_V, return_index=True)[1]
    for unit, logits, truth in (("window", logits_VK, label_V), ("recording", means, label_V[first])):
        predicted_class = _select_best_classes(logits)
        result[f"{unit}_accuracy"] = float((predicted_class == truth).mean())
        # Over the classes that occur: a class that no row has can be neither right nor wrong.
        classes = np.unique(truth)
        result[f"{unit}_balanced_accuracy"] = float(
            np.mean([(predicted_class[truth == c] == c).mean() for c in classes])
        )
    result["score"] = result["recording_balanced_accuracy"]
    diverged = always_present and not np.isfinite(logits_VK).all()
    return dict.fromkeys(result, float("nan")) if diverged else result


def compute_scores_from_values(
    values_VK: np.ndarray, true_VK: np.ndarray, recording_V: np.ndarray, subject_V: np.ndarray
) -> Scores:
    """Compute `compute_scores` of arrays of numbers, (windows, targets), in their units.

    Windows in which a source has nothing to say do not count; a number that is not finite makes all scores NaN.

    Args:
        recording_V: The number, from 0, of each window's recording.
        subject_V: Whose it is.
    """
    known = ~np.isnan(values_VK).any(1)
    first = np.unique(recording_V, return_index=True)[1]
    means = _average_logits(values_VK, recording_V)
    said = ~np.isnan(means).any(1)
    units = {
        "window": (values_VK[known], true_VK[known], subject_V[known]),
        "recording": (means[said], true_VK[first][said], subject_V[first][said]),
    }
    found = {f"{unit}_{name}": s for unit, parts in units.items() for name, s in score_numbers(*parts).items()}
    return found | {"score": found["recording_ccc"]}


def _average_logits(logits_VK: np.ndarray, recording_V: np.ndarray) -> np.ndarray:
    """(recordings, classes): of the windows that have logits, NaN where none has."""
    known = ~np.isnan(logits_VK)
    total, count = (np.zeros((recording_V.max(initial=-1) + 1, logits_VK.shape[1])) for _ in range(2))
    np.add.at(total, recording_V, np.where(known, logits_VK, 0).astype(np.float64))
    np.add.at(count, recording_V, known)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)

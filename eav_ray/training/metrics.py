"""Scores per window and per recording. A recording's logits are the mean of its windows' logits. Runs without torch."""

import numpy as np
import pandas as pd

Scores = dict[str, float]
LOGIT = "logit_"
FRAMES = ".frames_right"  # after the name of a source: share of a window's frames that are right (`training.frames`)
EVERYWHERE = ("fusion", "late_mean")  # sources that speak of every window; a modality says nothing where it is absent


def is_mean(column: str) -> bool:
    """Whether a recording has the mean of its windows in this column."""
    return LOGIT in column or column.startswith(("weight.", "corrected."))


def per_recording(windows: pd.DataFrame) -> pd.DataFrame:
    """One row a recording: subject, recording, label, and the mean of every logit and weight column.

    Columns are `<source>.logit_<class>` and `weight.<modality>`, as `run.predict` makes them. A recording's windows in
    which a source has nothing to say (NaN logits) do not count for it.
    """
    means = [c for c in windows.columns if is_mean(c)]
    return windows.groupby(["subject", "recording", "label"], sort=True)[means].mean().reset_index()


def predicted(table: pd.DataFrame, source: str) -> np.ndarray:
    """Class with the highest logit of one source (`fusion`, `late_mean`, `audio`, ...); -1 where it has none."""
    return _best(logits_of(table, source))


def _best(logits: np.ndarray) -> np.ndarray:
    known = np.isfinite(logits).all(1)
    best = np.full(len(logits), -1)
    best[known] = logits[known].argmax(1)
    return best


def logits_of(table: pd.DataFrame, source: str) -> np.ndarray:
    """(rows, classes) of one source; NaN where it has nothing to say."""
    columns = [c for c in table.columns if c.startswith(f"{source}.{LOGIT}")]
    return table[sorted(columns, key=lambda c: int(c.rsplit("_", 1)[1]))].to_numpy()


def scores(windows: pd.DataFrame, source: str = "fusion") -> Scores:
    """Accuracy and balanced accuracy per window and per recording.

    All are NaN where a source that speaks of every window has a logit that is not finite: the model has diverged, and
    a score, were it 0, would count in a search.
    """
    recording = windows.groupby(["subject", "recording"]).ngroup().to_numpy()
    label = windows["label"].to_numpy()
    return scores_of(logits_of(windows, source), label, recording, everywhere=source in EVERYWHERE)


def scores_of(logits_VK: np.ndarray, label_V: np.ndarray, recording_V: np.ndarray, *, everywhere: bool) -> Scores:
    """`scores` of arrays.

    Args:
        recording_V: The number, from 0, of each window's recording.
        everywhere: The logits are of a source that speaks of every window.
    """
    found: Scores = {}
    means, first = _means(logits_VK, recording_V), np.unique(recording_V, return_index=True)[1]
    for unit, logits, truth in (("window", logits_VK, label_V), ("recording", means, label_V[first])):
        guess = _best(logits)
        found[f"{unit}_accuracy"] = float((guess == truth).mean())
        # Over the classes that occur: a class that no row has can be neither right nor wrong.
        classes = np.unique(truth)
        found[f"{unit}_balanced_accuracy"] = float(np.mean([(guess[truth == c] == c).mean() for c in classes]))
    diverged = everywhere and not np.isfinite(logits_VK).all()
    return dict.fromkeys(found, float("nan")) if diverged else found


def _means(logits_VK: np.ndarray, recording_V: np.ndarray) -> np.ndarray:
    """(recordings, classes): of the windows that have logits, NaN where none has."""
    known = ~np.isnan(logits_VK)
    total, count = (np.zeros((recording_V.max(initial=-1) + 1, logits_VK.shape[1])) for _ in range(2))
    np.add.at(total, recording_V, np.where(known, logits_VK, 0).astype(np.float64))
    np.add.at(count, recording_V, known)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)

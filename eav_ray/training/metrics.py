"""Scores per window and per recording. A recording's logits are the mean of its windows' logits. Runs without torch."""

import numpy as np
import pandas as pd

LOGIT = "logit_"
EVERYWHERE = ("fusion", "late_mean")  # sources that speak of every window; a modality says nothing where it is absent


def per_recording(windows: pd.DataFrame) -> pd.DataFrame:
    """One row a recording: subject, recording, label, and the mean of every logit and weight column.

    Columns are `<source>.logit_<class>` and `weight.<modality>`, as `run.predict` makes them. A recording's windows in
    which a source has nothing to say (NaN logits) do not count for it.
    """
    means = [c for c in windows.columns if LOGIT in c or c.startswith(("weight.", "corrected."))]
    return windows.groupby(["subject", "recording", "label"], sort=True)[means].mean().reset_index()


def predicted(table: pd.DataFrame, source: str) -> np.ndarray:
    """Class with the highest logit of one source (`fusion`, `late_mean`, `audio`, ...); -1 where it has none."""
    logits = _logits(table, source)
    known = np.isfinite(logits).all(1)
    best = np.full(len(table), -1)
    best[known] = logits[known].argmax(1)
    return best


def _logits(table: pd.DataFrame, source: str) -> np.ndarray:
    columns = [c for c in table.columns if c.startswith(f"{source}.{LOGIT}")]
    return table[sorted(columns, key=lambda c: int(c.rsplit("_", 1)[1]))].to_numpy()


def scores(windows: pd.DataFrame, source: str = "fusion") -> dict[str, float]:
    """Accuracy and balanced accuracy per window and per recording.

    All are NaN where a source that speaks of every window has a logit that is not finite: the model has diverged, and
    a score, were it 0, would count in a search.
    """
    found: dict[str, float] = {}
    for unit, table in (("window", windows), ("recording", per_recording(windows))):
        guess, truth = predicted(table, source), table["label"].to_numpy()
        found[f"{unit}_accuracy"] = float((guess == truth).mean())
        # Over the classes that occur: a class that no row has can be neither right nor wrong.
        classes = np.unique(truth)
        found[f"{unit}_balanced_accuracy"] = float(np.mean([(guess[truth == c] == c).mean() for c in classes]))
    diverged = source in EVERYWHERE and not np.isfinite(_logits(windows, source)).all()
    return dict.fromkeys(found, float("nan")) if diverged else found

"""From logits to what a person reads: class probabilities, and the class that is predicted. Runs without torch."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from eav_ray.training.metrics import EVERYWHERE, LOGIT, is_mean, predicted

PREDICTED = "predicted"


def softmax(logits_VK: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, float64; a row with a value that is not finite is NaN throughout."""
    known = np.isfinite(logits_VK).all(-1, keepdims=True)
    x_VK = np.where(known, logits_VK, 0.0).astype(np.float64)
    x_VK = np.exp(x_VK - x_VK.max(-1, keepdims=True))
    return np.where(known, x_VK / x_VK.sum(-1, keepdims=True), np.nan)


def probability(source: str, name: str) -> str:
    """The column of one class by one source: `probability.<class>` is the fusion's, `audio.probability.<class>`."""
    return f"probability.{name}" if source == "fusion" else f"{source}.probability.{name}"


def modalities_of(table: pd.DataFrame) -> list[str]:
    """Modalities that a table of predictions speaks of, in its order."""
    ends = f".{LOGIT}0"
    return [s for c in table.columns if c.endswith(ends) and (s := c.removesuffix(ends)) not in EVERYWHERE]


def with_probabilities(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """A table of logits (`run.to_frame`, or its means) with the predicted class and probabilities beside them.

    The softmax of a recording is that of the mean of its windows' logits. What a modality that was not there would say
    is NaN; a prediction that is not a number names no class: `predicted` is empty there.
    """
    made = {PREDICTED: np.array([*classes, ""], dtype=object)[predicted(table, "fusion")]}
    for source in ("fusion", *modalities_of(table)):
        p_VK = softmax(table[[f"{source}.{LOGIT}{k}" for k in range(len(classes))]].to_numpy(dtype=np.float64))
        made |= {probability(source, name): p_VK[:, k] for k, name in enumerate(classes)}
    ids = [c for c in table.columns if not is_mean(c)]
    numbers = [c for c in table.columns if is_mean(c)]
    # Answers first, then what they come from.
    return pd.concat([table[ids], pd.DataFrame(made, index=table.index), table[numbers]], axis=1)


class Recordings:
    """Means over the windows of each recording, of windows that come block after block.

    The same means as `metrics.per_recording` of all windows at once, in the order in which recordings first came.
    """

    KEYS = ("subject", "recording", "label")

    def __init__(self) -> None:
        self._sums: list[pd.DataFrame] = []

    def add(self, windows: pd.DataFrame) -> None:
        if not len(windows):
            return
        numbers = [c for c in windows.columns if is_mean(c)]
        groups = windows.groupby(list(self.KEYS), sort=False)
        counts = groups[numbers].count().add_suffix(" n")  # NaN: the source has nothing to say of that window
        self._sums.append(pd.concat([groups[numbers].sum(), counts, groups.size().rename("windows")], axis=1))

    def means(self) -> pd.DataFrame:
        """One row a recording: subject, recording, label, windows (their number), means."""
        total = pd.concat(self._sums).groupby(level=list(self.KEYS), sort=False).sum()
        numbers = [c for c in total.columns if is_mean(c) and not c.endswith(" n")]
        for c in numbers:
            total[c] = total[c] / total[f"{c} n"].replace(0, np.nan)
        return total[["windows", *numbers]].reset_index()

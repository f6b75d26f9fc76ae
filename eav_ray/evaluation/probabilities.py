"""From logits to what a person reads: class probabilities, and the class that is predicted. Runs without torch."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import special

from eav_ray.training.metrics import (
    LOGIT_PREFIX,
    RECORDING_COLUMNS,
    RULE_SOURCES,
    is_averaged_column,
    list_modality_sources,
    list_output_sources,
    list_truth_columns,
    predict_classes,
)

PREDICTED_COLUMN = "predicted"


def softmax(logits_VK: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, float64; a row with a value that is not finite is NaN throughout."""
    known = np.isfinite(logits_VK).all(-1, keepdims=True)
    return np.where(known, special.softmax(np.where(known, logits_VK, 0.0).astype(np.float64), axis=-1), np.nan)


def name_probability_column(source: str, class_name: str) -> str:
    """The column of one class by one source: `probability.<class>` is the fusion's, `audio.probability.<class>`."""
    return f"probability.{class_name}" if source == "fusion" else f"{source}.probability.{class_name}"


def name_logit_column(source: str, class_name: str) -> str:
    """The column of the logit that a probability is of: `logit.<class>` of the fusion, `audio.logit.<class>`."""
    return f"logit.{class_name}" if source == "fusion" else f"{source}.logit.{class_name}"


def add_probabilities(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """A table of logits (`predictions.build_predictions`, or its means) with the predicted class and probabilities
    beside them, all of them by the names of classes.

    The softmax of a recording is that of the mean of its windows' logits. What a modality that was not there would say
    is NaN; a prediction that is not a number names no class: `predicted` is empty there. Rules of fusion are sources
    like modalities, but for one modality alone, which they would repeat.
    """
    answers = {PREDICTED_COLUMN: np.array([*classes, ""], dtype=object)[predict_classes(table, "fusion")]}
    modalities = list_modality_sources(table)
    rules = RULE_SOURCES if len(modalities) > 1 else ()
    sources = [s for s in list_output_sources(table) if s not in ("fusion", *RULE_SOURCES, *modalities)]
    sources = ["fusion", *modalities, *(rule for rule in rules if f"{rule}.{LOGIT_PREFIX}0" in table), *sources]
    logits: dict[str, np.ndarray] = {}
    for source in sources:
        own = table[[f"{source}.{LOGIT_PREFIX}{k}" for k in range(len(classes))]]
        p_VK = softmax(own.to_numpy(dtype=np.float64))
        answers |= {name_probability_column(source, name): p_VK[:, k] for k, name in enumerate(classes)}
        logits |= {name_logit_column(source, name): own.iloc[:, k].to_numpy() for k, name in enumerate(classes)}
    ids = [c for c in table.columns if not is_averaged_column(c)]
    weights = [c for c in table.columns if is_averaged_column(c) and LOGIT_PREFIX not in c]
    # Answers first, then what they come from.
    return pd.concat([table[ids], pd.DataFrame(answers | logits, index=table.index), table[weights]], axis=1)


class RecordingAverager:
    """Means over the windows of each recording, of windows that come block after block.

    The same means as `metrics.average_per_recording` of all windows at once, in the order in which recordings first
    came.
    """

    def __init__(self) -> None:
        self.n_windows = 0
        self._sums: list[pd.DataFrame] = []
        self._keys: list[str] = []

    def add(self, windows: pd.DataFrame) -> None:
        if not len(windows):
            return
        self.n_windows += len(windows)
        averaged = [c for c in windows.columns if is_averaged_column(c)]
        self._keys = [*RECORDING_COLUMNS, *list_truth_columns(windows)]
        # Numbers that are predicted may be unknown (NaN).
        groups = windows.groupby(self._keys, sort=False, dropna=False)
        counts = groups[averaged].count().add_suffix(" n")  # NaN: the source has nothing to say of that window
        sums = pd.concat([groups[averaged].sum(), counts, groups.size().rename("windows")], axis=1)
        self._sums.append(sums.reset_index())

    def compute_means(self) -> pd.DataFrame:
        """One row a recording: subject, recording, what is true of it, windows (their number), means."""
        total = pd.concat(self._sums).groupby(self._keys, sort=False, dropna=False).sum()
        averaged = [c for c in total.columns if is_averaged_column(c) and not c.endswith(" n")]
        for c in averaged:
            total[c] = total[c] / total[f"{c} n"].replace(0, np.nan)
        return total[["windows", *averaged]].reset_index()

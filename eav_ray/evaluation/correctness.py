"""Count which recordings each source of predictions gets right."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from eav_ray.config import order_modalities
from eav_ray.training.metrics import (
    LOGIT_PREFIX,
    RECORDING_COLUMNS,
    RULE_SOURCES,
    STACKING,
    average_per_recording,
    predict_classes,
)
from eav_ray.words import format_count

COMBINED_SOURCES = (*RULE_SOURCES, "fusion")


def list_sources(modalities: Sequence[str], windows: pd.DataFrame | None = None) -> list[str]:
    """List what predictions of these modalities are accounted for by, in the order of the table, the main one last.

    Args:
        windows: The predictions; where they have stacking (`evaluation.stacking`), it is among the sources.
    """
    return [*order_modalities(modalities), *(list_combined_sources(windows) if len(modalities) > 1 else ())]


def list_combined_sources(windows: pd.DataFrame | None = None) -> list[str]:
    """List the sources that combine modalities; `windows` as for `list_sources`."""
    has_stacking = windows is not None and f"{STACKING}.{LOGIT_PREFIX}0" in windows
    return [*RULE_SOURCES, *([STACKING] if has_stacking else []), "fusion"]


def mark_correct_recordings(windows: pd.DataFrame, sources: list[str]) -> pd.DataFrame:
    """One row a recording: subject, recording, and for each source whether its mean logits name the true class.

    Args:
        windows: Predictions, one row a window, with columns `<source>.logit_<class>`; NaN where a source is missing.
    """
    table = average_per_recording(windows)
    result = table[[*RECORDING_COLUMNS, "label"]].copy()
    for source in sources:
        result[source] = predict_classes(table, source) == table["label"].to_numpy()
    return result


def find_best_source(correct: pd.DataFrame, sources: Sequence[str]) -> str:
    """Name the most accurate of some sources, by the mean over people; of equal ones the first.

    It is chosen on the very rows that it is then compared on, so it is a harder bar than one that was named before.
    """
    return max(sources, key=lambda s: float(correct.groupby("subject")[s].mean().mean()))


@dataclass(frozen=True)
class Rescue:
    """What a source makes of the recordings that the best single modality gets wrong, and of those it gets right."""

    source: str
    rescued: int  # right, where the single modality is wrong
    lost: int  # wrong, where the single modality is right


@dataclass(frozen=True)
class RescueTable:
    """Rescued and lost recordings of every combined source.

    Attributes:
        best_single: The modality that is most accurate on these very recordings.
        n_wrong, n_right: How many of them it gets wrong, and right.
    """

    best_single: str
    n_wrong: int
    n_right: int
    rows: list[Rescue]

    def __str__(self) -> str:
        counts = ", ".join(f"{row.source} {row.rescued} and {row.lost}" for row in self.rows)
        return (
            f"rescued, of {format_count(self.n_wrong, 'recording')} that {self.best_single} gets wrong, and lost, of "
            f"{self.n_right} that it gets right: {counts}"
        )


def count_rescues(correct: pd.DataFrame, modalities: Sequence[str], sources: Sequence[str]) -> RescueTable:
    """Count what each of some sources rescues and loses beside the best single modality.

    Args:
        correct: One row a recording: whether each modality and source is right.
    """
    best = find_best_source(correct, modalities)
    right = correct[best].to_numpy(bool)
    rows = [Rescue(s, int((correct[s] & ~right).sum()), int((~correct[s] & right).sum())) for s in sources]
    return RescueTable(best, int((~right).sum()), int(right.sum()), rows)

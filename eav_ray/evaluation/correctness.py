"""Count which recordings each source of predictions gets right."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from scipy.stats import binomtest

from eav_ray.config import order_modalities
from eav_ray.training.metrics import RECORDING_COLUMNS, average_per_recording, predict_classes

COMBINED_SOURCES = ("late_mean", "fusion")


def list_sources(modalities: Sequence[str]) -> list[str]:
    """What predictions of these modalities are accounted for by, in the order of the table."""
    return [*order_modalities(modalities), *(COMBINED_SOURCES if len(modalities) > 1 else ())]


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


@dataclass(frozen=True)
class FusionComparison:
    """Fusion against the best single modality, paired over recordings."""

    best_single: str
    fusion_only: int  # recordings that only fusion gets right
    single_only: int  # recordings that only the single modality gets right
    p_value: float  # exact McNemar test, two-sided

    @property
    def fusion_wins(self) -> bool:
        return self.fusion_only > self.single_only

    def __str__(self) -> str:
        return (
            f"fusion against {self.best_single}, paired over recordings: {self.fusion_only} right by fusion alone, "
            f"{self.single_only} by {self.best_single} alone; exact McNemar p = {self.p_value:.3g}"
        )


def compare_fusion(correct: pd.DataFrame, modalities: Sequence[str]) -> FusionComparison:
    best = max(modalities, key=lambda m: float(correct[m].mean()))
    fusion_only = int((correct["fusion"] & ~correct[best]).sum())
    single_only = int((~correct["fusion"] & correct[best]).sum())
    n = fusion_only + single_only
    p = float(binomtest(fusion_only, n).pvalue) if n else 1.0
    return FusionComparison(best, fusion_only, single_only, p)

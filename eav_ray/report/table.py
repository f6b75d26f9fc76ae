"""The table at the end: accuracy per person of each source, with mean and SD, and fusion against the best of one."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from eav_ray.training.metrics import per_recording, predicted

TOGETHER = ("late_mean", "fusion")
SOURCES = ("video", "audio", "eeg", *TOGETHER)


def correct_per_recording(windows: pd.DataFrame, sources: list[str]) -> pd.DataFrame:
    """One row a recording: subject, recording, and for each source whether its mean logits name the true class.

    Args:
        windows: Predictions, one row a window, with columns `<source>.logit_<class>`; NaN where a source is missing.
    """
    table = per_recording(windows)
    result = table[["subject", "recording", "label"]].copy()
    for source in sources:
        result[source] = predicted(table, source) == table["label"].to_numpy()
    return result


def warnings_of(metrics: dict[str, Any]) -> list[str]:
    """What the collapse check found in a trained fusion, a line each; `metrics` as a checkpoint holds them."""
    return [f"warning: {finding['text']}" for finding in metrics.get("collapse", [])]


@dataclass(frozen=True)
class Comparison:
    """Fusion against the best single modality, paired over recordings."""

    best_single: str
    fusion_only: int  # recordings that only fusion gets right
    single_only: int  # recordings that only the single modality gets right
    p_value: float  # exact McNemar test, two-sided

    @property
    def fusion_wins(self) -> bool:
        return self.fusion_only > self.single_only


def compare(correct: pd.DataFrame, singles: list[str]) -> Comparison:
    best = max(singles, key=lambda m: float(correct[m].mean()))
    fusion_only = int((correct["fusion"] & ~correct[best]).sum())
    single_only = int((~correct["fusion"] & correct[best]).sum())
    n = fusion_only + single_only
    p = float(binomtest(fusion_only, n).pvalue) if n else 1.0
    return Comparison(best, fusion_only, single_only, p)


def per_person(correct: pd.DataFrame, sources: list[str]) -> pd.DataFrame:
    """Accuracy of each source for each person: rows people, columns sources."""
    return correct.groupby("subject")[sources].mean()


def render(correct: pd.DataFrame, sources: list[str], n_classes: int, bayes: dict[str, float]) -> str:
    """Percent: one line a source with mean and SD over people, then chance, then Bayes where it is known."""
    people = per_person(correct, sources)
    lines = [f"{'':12}{'mean':>8}{'SD':>8}   " + "  ".join(f"{p:>10}" for p in people.index)]
    if bayes:
        lines[0] += f"{'Bayes':>12}"
    for source in sources:
        column = people[source] * 100
        sd = f"{column.std(ddof=1):8.2f}" if len(column) > 1 else f"{'-':>8}"
        known = f"{bayes[source] * 100:12.2f}" if source in bayes else f"{'':12}"
        lines.append(f"{source:12}{column.mean():8.2f}{sd}   " + "  ".join(f"{v:10.2f}" for v in column) + known)
    lines.append(f"{'chance':12}{100 / n_classes:8.2f}")
    return "\n".join(lines)

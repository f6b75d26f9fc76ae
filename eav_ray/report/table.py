"""The table at the end: accuracy per person of each source, with mean and SD, and fusion against the best of one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from eav_ray.data.split import CROSS_SUBJECT_PROTOCOLS, Split
from eav_ray.report import statistics
from eav_ray.report.statistics import compute_subject_accuracy
from eav_ray.training.metrics import average_per_recording, compute_scores, predict_classes

COMBINED_SOURCES = ("late_mean", "fusion")
SOURCES = ("video", "audio", "eeg", *COMBINED_SOURCES)
MAX_FOLD_LINES = 12  # folds of a protocol, at most, that have a line each


def list_sources(modalities: Sequence[str]) -> list[str]:
    """What predictions of these modalities are accounted for by, in the order of the table."""
    return [s for s in SOURCES if s in modalities or (len(modalities) > 1 and s in COMBINED_SOURCES)]


def describe_test_side(split: Split) -> str:
    """What sets the recordings that are scored apart from those that were trained on."""
    if split.protocol in CROSS_SUBJECT_PROTOCOLS:
        return "that were never trained on or chosen by"
    if split.protocol == "calibrated":
        return f"after calibration with {len(split.train)} others of theirs"
    return "of whom other recordings were trained on"


def mark_correct_recordings(windows: pd.DataFrame, sources: list[str]) -> pd.DataFrame:
    """One row a recording: subject, recording, and for each source whether its mean logits name the true class.

    Args:
        windows: Predictions, one row a window, with columns `<source>.logit_<class>`; NaN where a source is missing.
    """
    table = average_per_recording(windows)
    result = table[["subject", "recording", "label"]].copy()
    for source in sources:
        result[source] = predict_classes(table, source) == table["label"].to_numpy()
    return result


def format_collapse_warnings(metrics: dict[str, Any]) -> list[str]:
    """What the collapse check found in a trained fusion, a line each; `metrics` as a checkpoint holds them."""
    return [f"warning: {finding['text']}" for finding in metrics.get("collapse", [])]


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


def format_accuracy_table(
    correct: pd.DataFrame, sources: list[str], n_classes: int, bayes: dict[str, float], *, subject_columns: bool = True
) -> str:
    """Percent: one line a source with mean and SD over people, then chance, then Bayes where it is known.

    Args:
        columns: Whether each person has one.
    """
    subject_accuracy = compute_subject_accuracy(correct, sources)
    shown = subject_accuracy if subject_columns else subject_accuracy[:0]
    lines = [f"{'':12}{'mean':>8}{'SD':>8}   " + "  ".join(f"{p:>10}" for p in shown.index)]
    if bayes:
        lines[0] += f"{'Bayes':>12}"
    for source in sources:
        column = subject_accuracy[source] * 100
        sd = f"{column.std(ddof=1):8.2f}" if len(column) > 1 else f"{'-':>8}"
        bayes_cell = f"{bayes[source] * 100:12.2f}" if source in bayes else f"{'':12}"
        subject_cells = "  ".join(f"{v:10.2f}" for v in shown[source] * 100)
        lines.append(f"{source:12}{column.mean():8.2f}{sd}   {subject_cells}{bayes_cell}")
    lines.append(f"{'chance':12}{100 / n_classes:8.2f}")
    return "\n".join(lines)


def format_protocol_table(
    windows: pd.DataFrame, modalities: Sequence[str], n_classes: int, findings: dict[int, list[dict[str, Any]]]
) -> str:
    """Percent over all folds of a protocol together, a line a fold where they are few, and collapse warnings, counted.

    Args:
        windows: Predictions of all folds, as `correct_per_recording` takes them, with a column `fold`.
        findings: What the collapse check found in the model of each fold.
    """
    sources = list_sources(modalities)
    correct = mark_correct_recordings(windows, sources)
    lines = [
        line.rstrip()
        for line in format_accuracy_table(correct, sources, n_classes, {}, subject_columns=False).splitlines()
    ]
    if len(modalities) > 1:
        lines.append(str(compare_fusion(correct, modalities)))
    if correct["subject"].nunique() > 1:
        lines.append(statistics.format_statistics(correct, modalities, n_classes))
    folds = windows.drop_duplicates(["subject", "recording"])[["subject", "recording", "fold"]]
    if folds["fold"].nunique() <= MAX_FOLD_LINES:
        lines.append(f"{'fold':>4}  {'people':12}" + "".join(f"{s:>10}" for s in sources))
        for fold, fold_recordings in correct.merge(folds, on=["subject", "recording"]).groupby("fold"):
            subject_accuracy = compute_subject_accuracy(fold_recordings, sources)
            subjects_cell = (
                f"{len(subject_accuracy)} people" if len(subject_accuracy) > 1 else f"{subject_accuracy.index[0]}"
            )
            lines.append(
                f"{fold:>4}  {subjects_cell:12}" + "".join(f"{v:10.2f}" for v in subject_accuracy.mean() * 100)
            )
    counts = Counter(check for found in findings.values() for check in sorted({f["check"] for f in found}))
    if counts:
        counted = ", ".join(f"{check} ({count} of {len(findings)})" for check, count in counts.most_common())
        lines.append(f"warning: what the collapse check found, in how many folds: {counted}")
    return "\n".join(lines)


@dataclass(frozen=True)
class SearchOptimism:
    """What a search promised and what came of it: balanced accuracy of recordings, of the candidate that it chose."""

    inner_score: float  # mean over inner folds, by which it was chosen
    test_score: float  # of the test recordings
    changes: dict[str, Any]

    @property
    def points(self) -> float:
        return 100 * (self.inner_score - self.test_score)


def compute_optimism(windows: pd.DataFrame, inner_score: float, changes: dict[str, Any]) -> SearchOptimism:
    """
    Args:
        windows: Predictions of the test recordings.
    """
    return SearchOptimism(inner_score, compute_scores(windows)["recording_balanced_accuracy"], changes)


def format_optimism(folds: dict[int, SearchOptimism]) -> str:
    """Of every outer fold of a search, and a line for each where they are few."""
    optimisms = list(folds.values())
    points = [one.points for one in optimisms]
    inner, outer = (
        100 * mean(side) for side in ([o.inner_score for o in optimisms], [o.test_score for o in optimisms])
    )
    spread = f" (SD {stdev(points):.2f} over {len(points)} folds)" if len(points) > 1 else ""
    lines = [
        f"search: chosen by {inner:.2f} on inner folds, tested {outer:.2f}; its optimism is "
        f"{mean(points):+.2f} points{spread}; balanced accuracy of recordings"
    ]
    if 1 < len(folds) <= MAX_FOLD_LINES:
        lines.append(f"{'fold':>4}{'inner':>9}{'tested':>9}{'optimism':>10}  chosen")
        for fold, one in sorted(folds.items()):
            chosen = ", ".join(f"{key}={format_value(value)}" for key, value in one.changes.items())
            lines.append(
                f"{fold:>4}{100 * one.inner_score:9.2f}{100 * one.test_score:9.2f}{one.points:+10.2f}  {chosen}"
            )
    return "\n".join(lines)


def format_value(value: Any) -> str:
    """A value of a search space, as it is shown."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)

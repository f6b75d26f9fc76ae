"""The table at the end: accuracy per person of each source, with mean and SD, and fusion against the best of one."""

from collections import Counter
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

import pandas as pd

from eav_ray.data.splits import CROSS_SUBJECT_PROTOCOLS, Split
from eav_ray.evaluation.correctness import compare_fusion, list_sources, mark_correct_recordings
from eav_ray.evaluation.statistics import (
    CHANCE_BAND_COVERAGE,
    MIN_SUBJECTS,
    N_BOOTSTRAP_DRAWS,
    collect_fusion_baselines,
    compare_paired,
    compute_balanced_chance_band,
    compute_bootstrap_interval,
    compute_chance_band,
    compute_oracle_correct,
    compute_subject_accuracy,
    has_unequal_classes,
    is_within_chance,
)
from eav_ray.evaluation.summary import SearchOptimism
from eav_ray.reporting.formatting import format_value
from eav_ray.reporting.html import Table
from eav_ray.training.metrics import RECORDING_COLUMNS

MAX_FOLD_LINES = 12  # folds of a protocol, at most, that have a line each


def describe_test_side(split: Split) -> str:
    """What sets the recordings that are scored apart from those that were trained on."""
    if split.protocol in CROSS_SUBJECT_PROTOCOLS:
        return "that were never trained on or chosen by"
    if split.protocol == "adapted":
        return f"after adaptation with {len(split.train)} others of theirs"
    return "of whom other recordings were trained on"


def format_collapse_warnings(metrics: dict[str, Any]) -> list[str]:
    """What the collapse check found in a trained fusion, a line each; `metrics` as a checkpoint holds them."""
    return [f"warning: {finding['text']}" for finding in metrics.get("modality_collapse", [])]


def format_table(table: Table) -> str:
    """Format a table of a page for the terminal: the first column to the left, the others to the right."""
    lines = [table.head, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def format_accuracy_table(
    correct: pd.DataFrame, sources: list[str], n_classes: int, bayes: dict[str, float], *, subject_columns: bool = True
) -> str:
    """Percent: one line a source with mean and SD over people, then chance, then Bayes where it is known.

    Args:
        subject_columns: Whether each person has one.
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
        windows: Predictions of all folds, as `mark_correct_recordings` takes them, with a column `fold`.
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
        lines.append(format_statistics(correct, modalities, n_classes))
    folds = windows.drop_duplicates(RECORDING_COLUMNS)[[*RECORDING_COLUMNS, "fold"]]
    if folds["fold"].nunique() <= MAX_FOLD_LINES:
        lines.append(f"{'fold':>4}  {'people':12}" + "".join(f"{s:>10}" for s in sources))
        for fold, fold_recordings in correct.merge(folds, on=RECORDING_COLUMNS).groupby("fold"):
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


def format_statistics(correct: pd.DataFrame, modalities: Sequence[str], n_classes: int) -> str:
    """Lines for the terminal: the interval of each source, chance, the oracle, and the fusion against the rest.

    Args:
        correct: As `correctness.mark_correct_recordings` makes it.
    """
    n_subjects, n_recordings = correct["subject"].nunique(), len(correct)
    low, high = compute_chance_band(n_recordings, n_classes)
    lines = [
        f"intervals: bootstrap over {n_subjects} people and their {n_recordings} recordings, {N_BOOTSTRAP_DRAWS:,} "
        "draws"
    ]
    for source in [c for c in correct.columns if c not in (*RECORDING_COLUMNS, "label")]:
        bounds = compute_bootstrap_interval(correct, source)
        chance_note = (
            f"; inside the {100 * CHANCE_BAND_COVERAGE:.1f} % band of chance"
            if is_within_chance(correct, source, n_classes)
            else ""
        )
        lines.append(f"{source:12}    95 % {100 * bounds.low:6.2f} to {100 * bounds.high:6.2f}{chance_note}")
    lines.append(f"{'chance':12}  {100 * CHANCE_BAND_COVERAGE:.1f} % {100 * low:6.2f} to {100 * high:6.2f}")
    if has_unequal_classes(correct["label"].to_numpy(), n_classes):
        low, high = compute_balanced_chance_band(correct["label"].to_numpy(), n_classes)
        lines.append(f"classes are unequal: judged by balanced accuracy, chance {100 * low:.2f} to {100 * high:.2f}")
    if len(modalities) > 1:
        lines.append(
            f"{'oracle':12}{100 * float(compute_oracle_correct(correct, modalities).mean()):8.2f}, right where any "
            "modality is"
        )
        if n_subjects < MIN_SUBJECTS:
            lines.append(f"{n_subjects} people are too few for a test over people, which wants {MIN_SUBJECTS}")
        else:
            lines += [
                str(one) for one in compare_paired(correct, "fusion", collect_fusion_baselines(correct, modalities))
            ]
    return "\n".join(lines)

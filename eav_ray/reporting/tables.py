"""The table at the end: accuracy per person of each source, with mean and SD, and fusion against the best of one."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from eav_ray.config import Experiment
from eav_ray.data.splits import CROSS_SUBJECT_PROTOCOLS, Split
from eav_ray.evaluation import statistics
from eav_ray.evaluation.comparisons import MIN_SUBJECTS, collect_fusion_baselines, compare_paired
from eav_ray.evaluation.correctness import COMBINED_SOURCES, count_rescues, list_sources, mark_correct_recordings
from eav_ray.evaluation.fusion_claim import judge_fusion
from eav_ray.evaluation.single_class import list_single_class_lines
from eav_ray.evaluation.summary import SearchOptimism
from eav_ray.reporting.formatting import format_changes, format_interval, format_percent
from eav_ray.reporting.html import Column, Table, build_table
from eav_ray.training.metrics import RECORDING_COLUMNS
from eav_ray.words import format_count

MAX_FOLD_LINES = 12  # folds of a protocol, at most, that have a line each
MAX_WARNINGS = 3  # of one kind


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


def format_single_class_warnings(
    windows: pd.DataFrame, modalities: Sequence[str], classes: Sequence[str], experiment: Experiment
) -> list[str]:
    """Warn of models that name one class for nearly all windows, a line each."""
    sources = [s for s in list_sources(modalities) if s in (*modalities, "fusion")]
    lines = list_single_class_lines(windows, sources, classes, experiment)
    more = [f"warning: and {len(lines) - MAX_WARNINGS} more of such models"] if len(lines) > MAX_WARNINGS else []
    return [*(f"warning: {line}" for line in lines[:MAX_WARNINGS]), *more]


def format_table(table: Table, *, ends_with_prose: bool = False) -> str:
    """Format a table for the terminal: numbers to the right, the first column, and prose at the end, to the left."""
    columns = list(zip(table.head, *table.rows, strict=True))
    aligned = []
    for number, column in enumerate(columns):
        width = max(map(len, column))
        is_left = number == 0 or (ends_with_prose and number == len(columns) - 1)
        aligned.append([cell.ljust(width) if is_left else cell.rjust(width) for cell in column])
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*aligned, strict=True))


def format_accuracy_table(
    correct: pd.DataFrame, sources: list[str], n_classes: int, bayes: dict[str, float], *, subject_columns: bool = True
) -> str:
    """Percent: one line a source with mean and SD over people, then chance, then Bayes where it is known.

    Args:
        subject_columns: Whether each person has one.
    """
    subject_accuracy = statistics.compute_subject_accuracy(correct, sources)
    rows: list[dict[str, Any]] = []
    for source, column in subject_accuracy.items():
        sd = format_percent(column.std(ddof=1))
        rows.append({"source": source, "mean": column.mean(), "sd": sd, "bayes": bayes.get(str(source)), **column})
    rows.append({"source": "chance", "mean": 1 / n_classes})
    columns: list[Column] = [("", "source", ""), ("mean", "mean", format_percent), ("SD", "sd", "")]
    if subject_columns:
        columns += [(subject, subject, format_percent) for subject in subject_accuracy.index]
    if bayes:
        columns.append(("Bayes", "bayes", format_percent))
    return format_table(build_table(rows, columns, missing=""))


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
    lines = [format_accuracy_table(correct, sources, n_classes, {}, subject_columns=False)]
    if len(modalities) > 1:
        lines.append(format_fusion_comparison(correct, modalities))
    if correct["subject"].nunique() > 1:
        lines.append(format_statistics(correct, modalities, n_classes))
    folds = windows.drop_duplicates(RECORDING_COLUMNS)[[*RECORDING_COLUMNS, "fold"]]
    if folds["fold"].nunique() <= MAX_FOLD_LINES:
        rows = []
        for fold, fold_recordings in correct.merge(folds, on=RECORDING_COLUMNS).groupby("fold"):
            accuracy = statistics.compute_subject_accuracy(fold_recordings, sources)
            subjects = format_count(len(accuracy), "person") if len(accuracy) > 1 else accuracy.index[0]
            rows.append({"fold": fold, "subjects": subjects, **accuracy.mean()})
        columns = [("fold", "fold", ""), ("people", "subjects", ""), *((s, s, format_percent) for s in sources)]
        lines.append(format_table(build_table(rows, columns)))
    return "\n".join([*lines, *count_collapse_findings(findings)])


def count_collapse_findings(findings: Mapping[int, list[dict[str, Any]]]) -> list[str]:
    """Count in how many folds the collapse check found what, in one line; in none where it found nothing.

    Args:
        findings: What it found in the model of each fold.
    """
    counts = Counter(check for found in findings.values() for check in sorted({f["check"] for f in found}))
    if not counts:
        return []
    counted = ", ".join(f"{check} ({count} of {len(findings)})" for check, count in counts.most_common())
    return [f"warning: what the collapse check found, in how many folds: {counted}"]


def format_fusion_comparison(correct: pd.DataFrame, modalities: Sequence[str]) -> str:
    """Format what a fusion rescues and loses, and whether it helps; of one person its comparisons too, as nothing else
    has them.

    Args:
        correct: As `correctness.mark_correct_recordings` makes it, of two modalities or more.
    """
    claim = judge_fusion(correct, modalities)
    alone = claim.comparisons if correct["subject"].nunique() == 1 else []
    return "\n".join(map(str, [*alone, count_rescues(correct, modalities, COMBINED_SOURCES), claim]))


def format_optimism(folds: dict[int, SearchOptimism]) -> str:
    """Of every outer fold of a search, and a line for each where they are few."""
    points = [one.points for one in folds.values()]
    inner = format_percent(float(np.mean([one.inner_score for one in folds.values()])))
    tested = format_percent(float(np.mean([one.test_score for one in folds.values()])))
    spread = f" (SD {np.std(points, ddof=1):.2f} over {format_count(len(points), 'fold')})" if len(points) > 1 else ""
    summary = (
        f"search: chosen by {inner} on inner folds, tested {tested}; its optimism is {np.mean(points):+.2f} "
        f"points{spread}; balanced accuracy of recordings"
    )
    if not 1 < len(folds) <= MAX_FOLD_LINES:
        return summary
    rows = [{"fold": fold, "points": one.points, **vars(one)} for fold, one in sorted(folds.items())]
    columns = [
        ("fold", "fold", ""),
        ("inner", "inner_score", format_percent),
        ("tested", "test_score", format_percent),
        ("optimism", "points", "+.2f"),
        ("chosen", "changes", format_changes),
    ]
    return f"{summary}\n{format_table(build_table(rows, columns), ends_with_prose=True)}"


def format_statistics(correct: pd.DataFrame, modalities: Sequence[str], n_classes: int) -> str:
    """Lines for the terminal: the interval of each source, chance, the oracle, and the fusion against the rest.

    Args:
        correct: As `correctness.mark_correct_recordings` makes it.
    """
    n_subjects, n_recordings, labels = correct["subject"].nunique(), len(correct), correct["label"].to_numpy()
    low, high = statistics.compute_chance_band(n_recordings, n_classes)
    coverage = f"{100 * statistics.CHANCE_BAND_COVERAGE:.1f} %"
    lines = [
        f"intervals: Student's t over {format_count(n_subjects, 'person')}, each with the mean of their recordings"
    ]
    if n_subjects == 1:
        lines = [f"no intervals: {format_count(n_recordings, 'recording')} of one person say nothing of other people"]
    for source in [c for c in correct.columns if c not in (*RECORDING_COLUMNS, "label")]:
        bounds = statistics.compute_accuracy_interval(correct, source)
        is_within_chance = statistics.is_within_chance(correct, source, n_classes)
        chance_note = f"; inside the {coverage} band of chance" if is_within_chance else ""
        ends = format_interval((bounds.low, bounds.high), lambda share: f"{100 * share:6.2f}")
        lines.append(f"{source:16}    95 % {ends}{chance_note}")
    lines.append(f"{'chance':16}  {coverage} {100 * low:6.2f} to {100 * high:6.2f}")
    if statistics.has_unequal_classes(labels, n_classes):
        low, high = statistics.compute_balanced_chance_band(correct, n_classes)
        lines.append(f"classes are unequal: judged by balanced accuracy, chance {100 * low:.2f} to {100 * high:.2f}")
    if len(modalities) > 1:
        oracle = 100 * float(statistics.compute_oracle_correct(correct, modalities).mean())
        lines.append(f"{'oracle':16}{oracle:8.2f}, right where any modality is")
        if n_subjects < MIN_SUBJECTS:
            lines.append(
                f"{format_count(n_subjects, 'person')} {'is' if n_subjects == 1 else 'are'} too few for a test over "
                f"people, which wants {MIN_SUBJECTS}: counts"
            )
        lines += map(str, compare_paired(correct, "fusion", collect_fusion_baselines(correct, modalities)))
    return "\n".join(lines)

"""The tables at the end where numbers are predicted: CCC, Pearson and RMSE of each target and source."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from eav_ray.evaluation.number_comparisons import compare_number_sources, judge_number_fusion
from eav_ray.evaluation.number_scores import CONSTANT_SOURCE, average_numbers, list_number_sources
from eav_ray.evaluation.number_summary import summarize_numbers
from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting.formatting import apply_format, format_changes, format_interval
from eav_ray.reporting.html import Column, build_table
from eav_ray.reporting.tables import MAX_FOLD_LINES, count_collapse_findings, format_table
from eav_ray.training.metrics import list_truth_columns, select_values
from eav_ray.training.number_scores import score_numbers
from eav_ray.words import format_count

CORRELATION_FORMAT, ERROR_FORMAT = ".3f", ".4g"


def format_correlation(value: float | None) -> str:
    return apply_format(value, CORRELATION_FORMAT)


def format_error(value: float | None) -> str:
    """Format an RMSE, which has the unit of its target."""
    return apply_format(value, ERROR_FORMAT)


def list_score_columns(*, with_sd: bool) -> list[Column]:
    """List the columns of a table of scores (`list_score_rows`).

    Args:
        with_sd: Whether people have scores of their own.
    """
    columns: list[Column] = []
    for name, title, form in (
        ("ccc", "CCC", format_correlation),
        ("pearson", "Pearson", format_correlation),
        ("rmse", "RMSE", format_error),
    ):
        columns.append((title, name, form))
        if with_sd or name == "rmse":
            columns.append(("SD", f"{name}_sd", form))
        columns.append(("95 %", f"{name}_interval", lambda pair, form=form: format_interval(pair, form)))
    return [*columns, ("people", "n_counted", "")]


def list_score_rows(target: ResultsTree) -> list[ResultsTree]:
    """List the scores of one target, an entry a source.

    Args:
        target: As `summarize_numbers` has it: at its level, or with `level` changed, at the other.
    """
    rows = []
    for source, one in target["sources"].items():
        own = one[target["level"]]
        scores = {"ccc": own["ccc"], "pearson": own["pearson"], "rmse": one["rmse"]}
        row: ResultsTree = {"source": source, "n_counted": own["n_subjects"]}
        for name, score in scores.items():
            row |= {name: score["mean"], f"{name}_sd": score["sd"], f"{name}_interval": score["interval"]}
        rows.append(row)
    return rows


def describe_level(target: ResultsTree, n_subjects: int) -> str:
    """Say what the scores of a target are of."""
    if target["level"] == "within":
        n_counted = max(one["within"]["n_subjects"] for one in target["sources"].values())
        return (
            "within people: CCC, Pearson and RMSE over the recordings of each person, then means over people; "
            f"{n_counted} of {format_count(n_subjects, 'person')} have 3 recordings or more with differing targets"
        )
    return (
        f"between people: nobody has 3 recordings with differing targets, so CCC and Pearson are over the means of "
        f"{format_count(n_subjects, 'person')} (intervals by a jackknife over people); RMSE is the mean over people"
    )


def format_number_scores(summary: ResultsTree) -> list[str]:
    """Format the scores of every target, and what is to be known of them.

    Args:
        summary: From `summarize_numbers`.
    """
    lines = []
    for name, target in summary["targets"].items():
        columns = [("", "source", ""), *list_score_columns(with_sd=target["level"] == "within")]
        table = format_table(build_table(list_score_rows(target), columns))
        lines += [f"{name}, {describe_level(target, summary['n_subjects'])}", table, *list_score_notes(target)]
    return lines


def list_score_notes(target: ResultsTree) -> list[str]:
    """List what is to be known of the scores of a target: what cannot be told from a constant, and what is missing."""
    sources = {s: one for s, one in target["sources"].items() if s != CONSTANT_SOURCE}
    notes = []
    if within_chance := [s for s, one in sources.items() if one["within_chance"]]:
        notes.append(f"the interval holds the CCC of a constant prediction, 0: {', '.join(within_chance)}")
    if missing := [
        f"{one['n_without_prediction']} of {s}" for s, one in sources.items() if one["n_without_prediction"]
    ]:
        notes.append(
            f"recordings with a target and without a prediction: {', '.join(missing)}; a modality is scored on the "
            "others, a source that speaks of all recordings has no mean"
        )
    return notes


def format_number_protocol(
    windows: pd.DataFrame,
    modalities: Sequence[str],
    targets: Sequence[str],
    findings: Mapping[int, list[dict[str, Any]]],
) -> str:
    """Format all folds of a protocol, a line a fold where they are few, and collapse warnings, counted.

    Args:
        windows, findings: As of `tables.format_protocol_table`.
    """
    lines = format_number_scores(summarize_numbers(windows, modalities, targets))
    lines += format_number_comparisons(windows, modalities, targets)
    if windows["fold"].nunique() <= MAX_FOLD_LINES:
        lines.append(_format_folds(windows, modalities, targets))
    return "\n".join([*lines, *count_collapse_findings(findings)])


def _format_folds(windows: pd.DataFrame, modalities: Sequence[str], targets: Sequence[str]) -> str:
    """Format the main source of each fold."""
    source = list_number_sources(modalities)[-1]
    rows, columns = [], [("fold", "fold", ""), ("people", "subjects", "")]
    for fold, own in windows.groupby("fold"):
        names = own["subject"].unique()
        subjects = format_count(len(names), "person") if len(names) > 1 else names[0]
        row: dict[str, Any] = {"fold": fold, "subjects": subjects}
        for target, one in summarize_numbers(own, modalities, targets)["targets"].items():
            scores = one["sources"][source]
            row |= {f"{target} CCC": scores[one["level"]]["ccc"]["mean"], f"{target} RMSE": scores["rmse"]["mean"]}
        rows.append(row)
    for target in targets:
        columns += [(f"{target} CCC", f"{target} CCC", format_correlation), ("RMSE", f"{target} RMSE", format_error)]
    return f"{source}, by fold\n{format_table(build_table(rows, columns))}"


def format_number_comparisons(windows: pd.DataFrame, modalities: Sequence[str], targets: Sequence[str]) -> list[str]:
    """Format the fusion against the rest, by the measure that decides, and whether it helps."""
    claims = judge_number_fusion(windows, modalities, targets)
    deciding = {claim.target: claim.comparisons[0].measure for claim in claims}
    tables = compare_number_sources(windows, modalities, targets)
    lines = [
        str(row)
        for table in tables
        for row in table.rows
        if row.paired.ours == "fusion" and deciding[row.target] == row.measure
    ]
    return [*lines, *map(str, claims)]


def format_number_optimism(searches: Mapping[int, Mapping[str, Any]], tested: Mapping[int, float]) -> str:
    """Format what searches promised on inner folds, and what was tested: the mean CCC of the targets.

    Args:
        searches: Fold -> `inner_score` and `changes` of what was chosen.
        tested: Fold -> the score of the test recordings (`compute_test_score`).
    """
    rows = [
        {"fold": fold, "tested": tested[fold], "optimism": one["inner_score"] - tested[fold], **one}
        for fold, one in sorted(searches.items())
    ]
    means = {name: float(np.mean([row[name] for row in rows])) for name in ("inner_score", "tested", "optimism")}
    sd = float(np.std([row["optimism"] for row in rows], ddof=1)) if len(rows) > 1 else 0.0
    spread = f" (SD {sd:.3f} over {format_count(len(rows), 'fold')})" if len(rows) > 1 else ""
    summary = (
        f"search: chosen by {format_correlation(means['inner_score'])} on inner folds, tested "
        f"{format_correlation(means['tested'])}; its optimism is {apply_format(means['optimism'], '+.3f')}{spread}; "
        "mean CCC of the targets"
    )
    if not 1 < len(rows) <= MAX_FOLD_LINES:
        return summary
    columns: list[Column] = [
        ("fold", "fold", ""),
        ("inner", "inner_score", format_correlation),
        ("tested", "tested", format_correlation),
        ("optimism", "optimism", "+.3f"),
        ("chosen", "changes", format_changes),
    ]
    return f"{summary}\n{format_table(build_table(rows, columns), ends_with_prose=True)}"


def compute_test_score(windows: pd.DataFrame, modalities: Sequence[str]) -> float:
    """Compute the score by which models are chosen, of the main source on test recordings: the mean CCC of targets."""
    source = list_number_sources(modalities)[-1]
    recordings = average_numbers(windows, [source])
    true = recordings[list_truth_columns(recordings)].to_numpy(float)
    known = np.isfinite(true).all(1)
    values, subject = select_values(recordings, source), recordings["subject"].to_numpy()
    return score_numbers(values[known], true[known], subject[known])["ccc"]

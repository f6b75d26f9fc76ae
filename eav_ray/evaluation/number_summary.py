"""What predicted numbers are worth, in plain lists and dictionaries: the terminal and the page show these alone.

Errors are in the unit of each target.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from eav_ray.data.recordings import TARGET_PREFIX
from eav_ray.evaluation.number_comparisons import compare_number_sources, judge_number_fusion
from eav_ray.evaluation.number_scores import (
    Level,
    average_correlation,
    average_numbers,
    average_rmse,
    compute_calibration,
    find_level,
    list_number_sources,
    score_between_subjects,
    score_subjects,
    select_pairs,
)
from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.evaluation.statistics import Interval
from eav_ray.evaluation.summary import (
    MAX_WORST_SUBJECTS,
    average_subject_quality,
    correlate_with_quality,
    count_recordings,
)
from eav_ray.training.metrics import RECORDING_COLUMNS, average_per_recording

LEVEL_TITLES: dict[Level, str] = {"within": "within people", "between": "between people"}


def summarize_numbers(windows: pd.DataFrame, modalities: Sequence[str], targets: Sequence[str]) -> ResultsTree:
    """Summarize every target and source: CCC, Pearson, RMSE with intervals over people, and a constant prediction.

    Args:
        windows: Predictions, one row a window, with a column `fold`, and the constant prediction where it is known
            (`number_scores.add_constant_source`).
        targets: Names, in their order.
    Returns:
        `n_subjects`, `recordings`, `windows`, and of each name under `targets`: `level`, `n_known` (recordings with a
        target), `spread` of the true numbers, and `sources` (`_summarize_source`).
    """
    sources = list_number_sources(modalities, windows)
    recordings = average_numbers(windows, sources)
    return {
        "n_subjects": int(recordings["subject"].nunique()),
        "recordings": len(recordings),
        "windows": len(windows),
        "targets": {
            target: {
                "level": find_level(recordings, k),
                **_describe_spread(recordings[f"{TARGET_PREFIX}{k}"].to_numpy(float)),
                "sources": {source: _summarize_source(recordings, source, k) for source in sources},
            }
            for k, target in enumerate(targets)
        },
    }


def _describe_spread(true: np.ndarray) -> ResultsTree:
    known = true[np.isfinite(true)]
    if not len(known):
        return {"n_known": 0, "spread": None}
    spread = {
        "mean": float(known.mean()),
        "sd": float(known.std()),
        "low": float(known.min()),
        "high": float(known.max()),
    }
    return {"n_known": len(known), "spread": spread}


def _summarize_source(recordings: pd.DataFrame, source: str, position: int) -> ResultsTree:
    """Summarize one source: `within` and `between` people, `rmse`, calibration, and what it has no number of.

    `within_chance` says that the interval of the CCC at the target's level holds 0, which a constant prediction has;
    None where there is no interval.
    """
    pairs = select_pairs(recordings, source, position)
    scores = score_subjects(pairs)
    n_known = int(recordings[f"{TARGET_PREFIX}{position}"].notna().sum())
    n_predicted = int(pairs["predicted"].notna().sum())
    within = {name: average_correlation(scores, name) for name in ("ccc", "pearson")}
    between = score_between_subjects(pairs)
    main = (within if find_level(recordings, position) == "within" else between)["ccc"]
    return {
        "within": _describe_level(within, int(scores["counts"].sum())),
        "between": _describe_level(between, len(scores)),
        "rmse": describe_interval(average_rmse(scores)),
        "n_subjects": len(scores),
        "n_without_prediction": n_known - n_predicted,
        "within_chance": None if math.isnan(main.low) else main.low <= 0 <= main.high,
        "calibration": compute_calibration(pairs),
    }


def _describe_level(correlations: Mapping[str, Interval], n_subjects: int) -> ResultsTree:
    return {name: describe_interval(one) for name, one in correlations.items()} | {"n_subjects": n_subjects}


def describe_interval(one: Interval) -> ResultsTree:
    return {"mean": one.mean, "sd": one.sd, "interval": [one.low, one.high]}


def summarize_number_subjects(windows: pd.DataFrame, modalities: Sequence[str], targets: Sequence[str]) -> ResultsTree:
    """Summarize each subject, by target: the best by the main source first.

    Returns:
        Target -> one entry a subject: `subject`, `recordings`, and by source `ccc`, `pearson`, `rmse` and `bias`.
    """
    sources = list_number_sources(modalities)
    recordings = average_numbers(windows, sources)
    found: ResultsTree = {}
    for k, target in enumerate(targets):
        level: Level = find_level(recordings, k)
        scores = {s: score_subjects(select_pairs(recordings, s, k)) for s in sources}
        by_subject = {s: one[["ccc", "pearson", "rmse", "bias"]].to_dict("index") for s, one in scores.items()}
        rows: list[tuple[float, ResultsTree]] = []
        for subject, n_recordings in scores[sources[-1]]["recordings"].items():
            own = {s: one[subject] for s, one in by_subject.items() if subject in one}
            row: ResultsTree = {"subject": str(subject), "recordings": int(n_recordings), **own}
            rows.append((_rank(row[sources[-1]], level), row))
        found[target] = [row for _, row in sorted(rows, key=lambda pair: (pair[0], pair[1]["subject"]))]
    return found


def _rank(scores: Mapping[str, float], level: Level) -> float:
    """Less is better; who has no score comes last."""
    value = -scores["ccc"] if level == "within" else scores["rmse"]
    return math.inf if math.isnan(value) else value


def compare_numbers_on_page(windows: pd.DataFrame, modalities: Sequence[str], targets: Sequence[str]) -> ResultsTree:
    """Compare sources, as results hold it: `tables` of comparisons that are corrected together, and `claims`."""
    claims = judge_number_fusion(windows, modalities, targets)
    return {
        "tables": [
            {"title": table.title, "measure": table.measure, "rows": [row.to_dict() for row in table.rows]}
            for table in compare_number_sources(windows, modalities, targets)
        ],
        "claims": [
            {
                "target": one.target,
                "best_single": one.best_single,
                "measure": one.comparisons[0].measure,
                "helps": one.helps,
                "text": str(one),
            }
            for one in claims
        ],
    }


def list_number_points(windows: pd.DataFrame, modalities: Sequence[str], targets: Sequence[str]) -> ResultsTree:
    """List what the main source predicts of each recording beside the truth: target -> [subject, true, predicted]."""
    source = list_number_sources(modalities)[-1]
    recordings = average_numbers(windows, [source])
    points: ResultsTree = {}
    for k, target in enumerate(targets):
        pairs = select_pairs(recordings, source, k)
        numbers = pairs[["true", "predicted"]].to_numpy(float).tolist()
        points[target] = [[str(subject), *own] for subject, own in zip(pairs["subject"], numbers, strict=True)]
    return points


def summarize_number_weights(windows: pd.DataFrame, modalities: Sequence[str]) -> ResultsTree:
    """Summarize modality weights: their means over recordings, and by person, as they are and per token."""
    if len(modalities) < 2:
        return {}
    table = average_per_recording(windows)
    found: ResultsTree = {}
    for kind in ("weight", "corrected"):
        columns = [f"{kind}.{m}" for m in modalities]
        named = table[columns].set_axis(list(modalities), axis=1)
        by_subject = named.groupby(table["subject"]).mean()
        found[kind] = {
            "all": {m: float(value) for m, value in named.mean().items()},
            "by_subject": {str(s): {m: float(v) for m, v in row.items()} for s, row in by_subject.iterrows()},
        }
    return found


def compute_number_gap(
    test_windows: pd.DataFrame, train_windows: pd.DataFrame, modalities: Sequence[str], targets: Sequence[str]
) -> list[ResultsTree]:
    """Compute the RMSE over recordings that were trained on, and over those that were tested, by target and source.

    Of those in which a source has a number; over all of them together, as training takes the error.
    """
    sides = {"train": train_windows, "test": test_windows}
    sources = list_number_sources(modalities)
    tables = {name: _average_per_fold(side, sources) for name, side in sides.items()}
    rows = []
    for k, target in enumerate(targets):
        for source in sources:
            errors = {}
            for name, table in tables.items():
                pairs = select_pairs(table, source, k)
                squares = np.square(pairs["predicted"].to_numpy() - pairs["true"].to_numpy())
                errors[name] = float(np.sqrt(squares.mean())) if len(squares) else math.nan
            rows.append({"target": target, "source": source, **errors, "recordings": count_recordings(train_windows)})
    return rows


def _average_per_fold(windows: pd.DataFrame, sources: Sequence[str]) -> pd.DataFrame:
    """Average recordings fold by fold: several may have been trained on one."""
    parts = [average_numbers(own, sources) for _, own in windows.groupby("fold")]
    return pd.concat(parts, ignore_index=True)


def correlate_number_quality(
    windows: pd.DataFrame, quality_per_recording: pd.DataFrame, modalities: Sequence[str], targets: Sequence[str]
) -> list[ResultsTree]:
    """Correlate what was measured of the signals with each subject's CCC, or RMSE where CCC is not defined.

    Args:
        quality_per_recording: As of `summary.correlate_signal_quality`.
    Returns:
        As `summary.correlate_signal_quality`, with `target` and `measure`; Holm's correction is for all targets.
    """
    sources = list_number_sources(modalities)
    recordings = average_numbers(windows, sources)
    measured = recordings[RECORDING_COLUMNS].merge(quality_per_recording, on=RECORDING_COLUMNS, how="left")
    subject_means = measured.drop(columns="recording").groupby("subject").mean()
    tables: list[tuple[ResultsTree, pd.DataFrame]] = []
    for k, target in enumerate(targets):
        measure = "ccc" if find_level(recordings, k) == "within" else "rmse"
        scores = {s: score_subjects(select_pairs(recordings, s, k))[measure] for s in sources}
        tables.append(({"target": target, "measure": measure}, subject_means.join(pd.DataFrame(scores))))
    columns = [c for c in quality_per_recording.columns if c not in RECORDING_COLUMNS]
    return correlate_with_quality(tables, columns, sources)


def summarize_worst_number_subjects(
    subjects: Mapping[str, list[ResultsTree]], quality_per_recording: pd.DataFrame | None
) -> list[ResultsTree]:
    """Summarize the people with the lowest scores of each target, with what was measured of their signals.

    Args:
        subjects: From `summarize_number_subjects`.
    """
    summaries = []
    for target, rows in subjects.items():
        for row in rows[::-1][: min(MAX_WORST_SUBJECTS, len(rows) // 2)]:
            summary: ResultsTree = {"target": target, **row}
            if quality_per_recording is not None:
                summary["signal_quality"] = average_subject_quality(quality_per_recording, row["subject"])
            summaries.append(summary)
    return summaries

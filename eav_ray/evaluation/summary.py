"""What predictions of test recordings are worth, in plain lists and dictionaries: the page shows these alone.

Shares are between 0 and 1. Recordings are the unit wherever something is compared; windows and frames are given beside.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import confusion_matrix

from eav_ray.evaluation import comparisons, statistics
from eav_ray.evaluation.comparisons import MIN_SUBJECTS, PairedComparison
from eav_ray.evaluation.correctness import (
    count_rescues,
    list_combined_sources,
    list_sources,
    mark_correct_recordings,
)
from eav_ray.evaluation.fusion_claim import judge_fusion
from eav_ray.evaluation.probability_calibration import average_windows_per_fold
from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.training.metrics import (
    FRAMES_CORRECT_SUFFIX,
    RECORDING_COLUMNS,
    average_per_recording,
    compute_scores,
    predict_classes,
)

N_PERMUTATIONS = 9_999  # draws of a rank correlation; with few people all permutations are gone through


MAX_WORST_SUBJECTS = 5  # people of whom more is said


def summarize_accuracy(windows: pd.DataFrame, modalities: Sequence[str], n_classes: int) -> ResultsTree:
    """Of every source: per frame, window and recording, mean and SD over people, intervals, chance.

    Args:
        windows: Predictions, one row a window (`training.predictions.build_predictions`), with a column `fold`.
    """
    sources = list_sources(modalities, windows)
    correct = mark_correct_recordings(windows, sources)
    recordings = average_per_recording(windows)
    label = correct["label"].to_numpy()
    chance = {"level": 1 / n_classes, "band": statistics.CHANCE_BAND_COVERAGE}
    chance["low"], chance["high"] = statistics.compute_chance_band(len(correct), n_classes)
    chance["balanced_low"], chance["balanced_high"] = statistics.compute_balanced_chance_band(correct, n_classes)
    results: ResultsTree = {
        "n_subjects": int(correct["subject"].nunique()),
        "recordings": len(correct),
        "windows": len(windows),
        "unequal": statistics.has_unequal_classes(label, n_classes),
        "chance": chance,
        "sources": {},
    }
    for source in sources:
        guess = predict_classes(recordings, source)
        mean = statistics.compute_accuracy_interval(correct, source)
        balanced = statistics.compute_balanced_interval(correct, source)
        results["sources"][source] = {
            "mean": mean.mean,
            "sd": mean.sd,
            "interval": [mean.low, mean.high],
            "balanced": balanced.mean,
            "balanced_interval": [balanced.low, balanced.high],
            "n_without_prediction": int((guess < 0).sum()),
            "macro_f1": statistics.macro_f1(recordings["label"].to_numpy(), guess),
            "inside_chance": statistics.is_within_chance(correct, source, n_classes),
            **compute_unit_accuracies(windows, source),
        }
    if len(modalities) > 1:
        oracle = statistics.compute_oracle_correct(correct, modalities)
        results["oracle"] = float(oracle.groupby(correct["subject"]).mean().mean())
    return results


def compute_unit_accuracies(windows: pd.DataFrame, source: str) -> ResultsTree:
    """Compute accuracy per frame, window and recording, each the mean over people.

    A window without the source counts as wrong. Per frame it is NaN where there is no video.
    """
    column = source + FRAMES_CORRECT_SUFFIX
    means = {"frame": float(windows.groupby("subject")[column].mean().mean()) if column in windows else math.nan}
    scores = [compute_scores(subject_windows, source) for _, subject_windows in windows.groupby("subject")]
    return means | {unit: float(np.mean([s[f"{unit}_accuracy"] for s in scores])) for unit in ("window", "recording")}


def summarize_subjects(
    windows: pd.DataFrame, modalities: Sequence[str], reference: pd.DataFrame | None = None
) -> list[ResultsTree]:
    """One entry a person, the best by the fusion (or the only source) first.

    Args:
        reference: Published accuracy of the same people (`reference_rows`), for real EAV alone.
    """
    sources = list_sources(modalities, windows)
    correct = mark_correct_recordings(windows, sources)
    rows = []
    for name, subject_rows in correct.groupby("subject"):
        row: ResultsTree = {
            "subject": str(name),
            "recordings": len(subject_rows),
            **{s: float(subject_rows[s].mean()) for s in sources},
        }
        if reference is not None and name in reference.index:
            row["reference"] = {str(k): float(v) for k, v in reference.loc[[name]].iloc[0].items()}
        rows.append(row)
    return sorted(rows, key=lambda row: (-row[sources[-1]], row["subject"]))


def compare_sources(windows: pd.DataFrame, modalities: Sequence[str]) -> ResultsTree:
    """The fusion against what it must beat, and the modalities against each other: paired over people, Holm each.

    Returns:
        `fusion` and `modalities`: lists of comparisons; `claim`: whether the fusion helps; `rescue`: what the combined
        sources make of the recordings that the best single modality gets wrong. The last two are None of one modality.
    """
    if len(modalities) < 2:
        return {"fusion": [], "modalities": [], "claim": None, "rescue": None}
    correct = mark_correct_recordings(windows, list_sources(modalities, windows))
    baselines = comparisons.collect_fusion_baselines(correct, modalities)
    pairs = combinations(list_sources(modalities)[: len(modalities)], 2)
    return {
        "fusion": [_name_and_describe(one) for one in comparisons.compare_paired(correct, "fusion", baselines)],
        "modalities": [_name_and_describe(one) for one in comparisons.compare_pairs(correct, pairs)],
        "claim": _summarize_claim(correct, modalities),
        "rescue": _summarize_rescues(correct, modalities, list_combined_sources(windows)),
    }


def _summarize_claim(correct: pd.DataFrame, modalities: Sequence[str]) -> ResultsTree:
    claim = judge_fusion(correct, modalities)
    return {
        "best_single": claim.best_single,
        "better_rule": claim.better_rule,
        "helps": claim.helps,
        "text": str(claim),
    }


def _summarize_rescues(correct: pd.DataFrame, modalities: Sequence[str], sources: list[str]) -> ResultsTree:
    """Shares are NaN where the best single modality gets nothing wrong, or nothing right."""
    table = count_rescues(correct, modalities, sources)
    rows = {
        row.source: {
            "rescued": row.rescued,
            "rescued_share": row.rescued / table.n_wrong if table.n_wrong else math.nan,
            "lost": row.lost,
            "lost_share": row.lost / table.n_right if table.n_right else math.nan,
        }
        for row in table.rows
    }
    return {"best_single": table.best_single, "n_wrong": table.n_wrong, "n_right": table.n_right, "sources": rows}


def _name_and_describe(comparison: PairedComparison) -> ResultsTree:
    return {"ours": comparison.ours, "other": comparison.other, **comparisons.comparison_to_dict(comparison)}


def count_confusions(windows: pd.DataFrame, modalities: Sequence[str], n_classes: int) -> ResultsTree:
    """Counts of recordings of each source, rows true and columns predicted; the last column is for no prediction."""
    recordings = average_per_recording(windows)
    classes = [*range(n_classes), -1]
    return {
        s: confusion_matrix(recordings["label"], predict_classes(recordings, s), labels=classes)[:-1].tolist()
        for s in list_sources(modalities, windows)
    }


def summarize_modality_weights(windows: pd.DataFrame, modalities: Sequence[str], classes: Sequence[str]) -> ResultsTree:
    """Mean modality weights over recordings, by class and by person, as they are and per token.

    With the spread between classes tested by Friedman's test over people, where every person has every class.
    """
    if len(modalities) < 2:
        return {}
    table = average_per_recording(windows)
    results: ResultsTree = {}
    for kind in ("weight", "corrected"):
        columns = [f"{kind}.{m}" for m in modalities]
        by_class = table.groupby("label")[columns].mean()
        by_subject = table.groupby("subject")[columns].mean()
        results[kind] = {
            "by_class": {classes[int(k)]: row for k, row in _rows_to_dicts(by_class, modalities)},
            "by_subject": {str(k): row for k, row in _rows_to_dicts(by_subject, modalities)},
        }
    results["classes_differ"] = {}
    for m in modalities:
        subject_means = table.pivot_table(f"corrected.{m}", "subject", "label").dropna()
        varied = subject_means.nunique(axis=1).max() > 1  # of a plain mean, and of one that diverged, there is no test
        if len(subject_means) >= MIN_SUBJECTS and subject_means.shape[1] > 2 and varied:
            p = float(stats.friedmanchisquare(*subject_means.to_numpy().T).pvalue)
            results["classes_differ"][m] = {"n_subjects": len(subject_means), "p": p}
    return results


def _rows_to_dicts(table: pd.DataFrame, names: Sequence[str]) -> list[tuple[Any, dict[str, float]]]:
    rows = zip(table.index, table.to_numpy(), strict=True)
    return [(key, dict(zip(names, map(float, row), strict=True))) for key, row in rows]


def compute_generalization_gap(
    test_windows: pd.DataFrame, train_windows: pd.DataFrame, modalities: Sequence[str]
) -> ResultsTree:
    """Accuracy per recording on recordings that were trained on, and on those that were tested: of those in which a
    source has something to say, which need not be as many on both sides."""
    return {
        source: {
            "train": _compute_share_correct(train_windows, source),
            "test": _compute_share_correct(test_windows, source),
            "recordings": count_recordings(train_windows),
        }
        for source in list_sources(modalities)
    }


def _compute_share_correct(windows: pd.DataFrame, source: str) -> float:
    table = average_windows_per_fold(windows)
    guess = predict_classes(table, source)
    correct = (guess == table["label"].to_numpy())[guess >= 0]
    return float(correct.mean()) if len(correct) else math.nan


def count_recordings(windows: pd.DataFrame) -> int:
    return len(windows[["fold", *RECORDING_COLUMNS]].drop_duplicates())


def correlate_signal_quality(
    windows: pd.DataFrame, quality_per_recording: pd.DataFrame, modalities: Sequence[str]
) -> list[ResultsTree]:
    """Does what was measured of the signals go with accuracy? Spearman's rank correlation over people, Holm over all.

    Args:
        quality_per_recording: One row a recording: `subject`, `recording`, and `quality_columns` of modalities.
    """
    sources = list_sources(modalities)
    correct = mark_correct_recordings(windows, sources).merge(quality_per_recording, on=RECORDING_COLUMNS, how="left")
    subject_means = correct.drop(columns=["recording", "label"]).groupby("subject").mean()
    columns = [c for c in quality_per_recording.columns if c not in RECORDING_COLUMNS]
    return correlate_with_quality([({}, subject_means)], columns, sources)


def correlate_with_quality(
    tables: Sequence[tuple[ResultsTree, pd.DataFrame]], columns: Sequence[str], sources: Sequence[str]
) -> list[ResultsTree]:
    """Correlate the scores of subjects with what was measured of their signals, Holm over all.

    Args:
        tables: Facts that are added to each correlation, and one row a subject with measures and scores of sources.
        columns: The measures, each of which begins with its modality.
        sources: The main one last.
    """
    correlations: list[ResultsTree] = []
    for facts, subject_means in tables:
        for column in columns:
            for source in dict.fromkeys((column.split("_")[0], sources[-1])):
                pairs = subject_means[[column, source]].dropna() if source in sources else subject_means[:0]
                if len(pairs) >= 3:
                    correlations.append({**facts, **_correlate(pairs, column, source)})
    tested = [one for one in correlations if one["p"] is not None]
    smallest = comparisons.holm([_smallest_permutation_p_value(len(one["points"])) for one in tested])
    adjusted = comparisons.holm([one["p"] for one in tested])
    for one, p, least in zip(tested, adjusted, smallest, strict=True):
        one["holm"] = p
        one["verdict"] = comparisons.describe_verdict(p, least, len(one["points"]), len(tested))
    return correlations


def _correlate(pairs: pd.DataFrame, column: str, source: str) -> ResultsTree:
    constant = pairs[column].nunique() < 2 or pairs[source].nunique() < 2
    too_few_subjects = len(pairs) < MIN_SUBJECTS
    points = [[str(p), float(x), float(y)] for p, (x, y) in zip(pairs.index, pairs.to_numpy(), strict=True)]
    rho, p = (None, None) if constant or too_few_subjects else _correlate_ranks(pairs[column], pairs[source])
    verdict = "too few people" if too_few_subjects else "the same for everybody"
    return {"quality_measure": column, "source": source, "rho": rho, "p": p, "verdict": verdict, "points": points}


def _correlate_ranks(x: pd.Series, y: pd.Series) -> tuple[float, float]:
    """Spearman's correlation and its p value by permutation: Student's t is far off with few people."""
    scores_x, scores_y = stats.zscore(stats.rankdata(x)), stats.zscore(stats.rankdata(y))
    test: Any = stats.permutation_test(
        (scores_x,),
        lambda drawn, axis: (drawn * scores_y).mean(axis),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=N_PERMUTATIONS,
        rng=np.random.default_rng(0),
    )
    return float(test.statistic), float(test.pvalue)


def _smallest_permutation_p_value(n_subjects: int) -> float:
    return 2 / min(math.factorial(n_subjects), N_PERMUTATIONS + 1)


def summarize_worst_subjects(
    rows: list[ResultsTree], windows: pd.DataFrame, quality_per_recording: pd.DataFrame | None, classes: Sequence[str]
) -> list[ResultsTree]:
    """The people with the lowest accuracy, with what of theirs went where, and how their signals measured.

    Args:
        rows: From `people`.
    """
    table = average_per_recording(windows)
    summaries = []
    for row in rows[::-1][: min(MAX_WORST_SUBJECTS, len(rows) // 2)]:
        subject_recordings = table[table["subject"] == row["subject"]]
        guess = predict_classes(subject_recordings, "fusion")
        pairs = [(t, g) for t, g in zip(subject_recordings["label"], guess, strict=True) if g not in (t, -1)]
        mistakes = Counter(f"{classes[t]} as {classes[g]}" for t, g in pairs)
        summary: ResultsTree = {**row, "mistakes": dict(mistakes.most_common(3))}
        if quality_per_recording is not None:
            summary["signal_quality"] = average_subject_quality(quality_per_recording, row["subject"])
        summaries.append(summary)
    return summaries


def average_subject_quality(quality_per_recording: pd.DataFrame, subject: str) -> dict[str, float]:
    """Average what was measured of one subject's signals."""
    means = quality_per_recording[quality_per_recording["subject"] == subject].drop(columns=RECORDING_COLUMNS).mean()
    return {str(k): float(v) for k, v in means.items()}


@dataclass(frozen=True)
class SearchOptimism:
    """What a search promised and what came of it: the score (`SELECTION_METRIC`) of the candidate that it chose."""

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
    return SearchOptimism(inner_score, compute_scores(windows)["score"], changes)

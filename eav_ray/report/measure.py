"""What predictions of test recordings are worth, in plain lists and dictionaries: the page shows these alone.

Shares are between 0 and 1. Recordings are the unit wherever something is compared; windows and frames are told beside.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from eav_ray.report import statistics
from eav_ray.report.calibration import per_fold
from eav_ray.report.table import correct_per_recording, sources_of
from eav_ray.training.metrics import FRAMES_CORRECT_SUFFIX, average_per_recording, compute_scores, predict_classes

Tree = dict[str, Any]
WORST = 5  # people of whom more is said


def accuracy(windows: pd.DataFrame, modalities: Sequence[str], n_classes: int) -> Tree:
    """Of every source: per frame, window and recording, mean and SD over people, intervals, chance.

    Args:
        windows: Predictions, one row a window (`training.run.to_frame`), with a column `fold`.
    """
    sources = sources_of(modalities)
    correct = correct_per_recording(windows, sources)
    recordings = average_per_recording(windows)
    label = correct["label"].to_numpy()
    low, high = statistics.chance_band(len(correct), n_classes)
    balanced_low, balanced_high = statistics.balanced_chance_band(label, n_classes)
    found: Tree = {
        "people": int(correct["subject"].nunique()),
        "recordings": len(correct),
        "windows": len(windows),
        "unequal": statistics.unequal(label, n_classes),
        "chance": {
            "level": 1 / n_classes,
            "low": low,
            "high": high,
            "balanced_low": balanced_low,
            "balanced_high": balanced_high,
            "band": statistics.BAND,
        },
        "sources": {},
    }
    for source in sources:
        guess = predict_classes(recordings, source)
        mean = statistics.interval(correct, source)
        balanced = statistics.balanced_interval(correct, source)
        found["sources"][source] = {
            "mean": mean.mean,
            "sd": mean.sd,
            "interval": [mean.low, mean.high],
            "balanced": balanced.mean,
            "balanced_interval": [balanced.low, balanced.high],
            "silent": int((guess < 0).sum()),
            "macro_f1": statistics.macro_f1(recordings["label"].to_numpy(), guess),
            "inside_chance": statistics.inside_chance(correct, source, n_classes),
            **units(windows, source),
        }
    if len(modalities) > 1:
        found["oracle"] = float(statistics.oracle(correct, modalities).groupby(correct["subject"]).mean().mean())
    return found


def units(windows: pd.DataFrame, source: str) -> Tree:
    """Accuracy per frame, window and recording, each the mean over people; None per frame where there is no video."""
    means = compute_subject_mean_scores(windows, source)
    column = source + FRAMES_CORRECT_SUFFIX
    per_frame = windows.groupby("subject")[column].mean().mean() if column in windows else math.nan
    return {"frame": float(per_frame), "window": means["window"], "recording": means["recording"]}


def compute_subject_mean_scores(windows: pd.DataFrame, source: str) -> dict[str, float]:
    """Mean over people of the accuracy per window and per recording; a window without the source counts as wrong."""
    scores_per_subject = [compute_scores(mine, source) for _, mine in windows.groupby("subject")]
    return {
        unit: float(np.mean([s[f"{unit}_accuracy"] for s in scores_per_subject])) for unit in ("window", "recording")
    }


def summarize_subjects(
    windows: pd.DataFrame, modalities: Sequence[str], reference: pd.DataFrame | None = None
) -> list[Tree]:
    """One entry a person, the best by the fusion (or the only source) first.

    Args:
        reference: Published accuracy of the same people (`reference_rows`), for real EAV alone.
    """
    sources = sources_of(modalities)
    correct = correct_per_recording(windows, sources)
    found = []
    for name, mine in correct.groupby("subject"):
        row: Tree = {"subject": str(name), "recordings": len(mine), **{s: float(mine[s].mean()) for s in sources}}
        if reference is not None and name in reference.index:
            row["reference"] = {str(k): float(v) for k, v in reference.loc[[name]].iloc[0].items()}
        found.append(row)
    return sorted(found, key=lambda row: (-row[sources[-1]], row["subject"]))


def comparisons(windows: pd.DataFrame, modalities: Sequence[str]) -> Tree:
    """The fusion against what it must beat, and the modalities against each other: paired over people, Holm each."""
    if len(modalities) < 2:
        return {"fusion": [], "modalities": []}
    correct = correct_per_recording(windows, sources_of(modalities))
    rivals = statistics.rivals(correct, modalities)
    return {
        "fusion": [paired(one) for one in statistics.against(correct, "fusion", rivals)],
        "modalities": [paired(one) for one in statistics.pairwise(correct, sources_of(modalities)[: len(modalities)])],
    }


def paired(one: statistics.Paired) -> Tree:
    return {
        "ours": one.ours,
        "other": one.other,
        "difference": one.difference.mean,
        "interval": [one.difference.low, one.difference.high],
        "people": one.n_subjects,
        "p": one.p_value,
        "holm": one.holm,
        "effect": one.effect,
        "verdict": verdict(one),
    }


def verdict(one: statistics.Paired) -> str:
    if one.n_subjects < statistics.MIN_SUBJECTS:
        return f"of {one.n_subjects} people no difference could be significant"
    return "significant" if one.significant else "not significant"


def confusion(windows: pd.DataFrame, modalities: Sequence[str], n_classes: int) -> Tree:
    """Counts of recordings of each source, rows true and columns predicted; the last column is for no prediction."""
    recordings = average_per_recording(windows)
    found: Tree = {}
    for source in sources_of(modalities):
        counts = np.zeros((n_classes, n_classes + 1), int)
        np.add.at(counts, (recordings["label"].to_numpy(), predict_classes(recordings, source) % (n_classes + 1)), 1)
        found[source] = counts.tolist()
    return found


def weights(windows: pd.DataFrame, modalities: Sequence[str], classes: Sequence[str]) -> Tree:
    """Mean modality weights over recordings, by class and by person, as they are and per token.

    With the spread between classes tested by Friedman's test over people, where every person has every class.
    """
    if len(modalities) < 2:
        return {}
    table = average_per_recording(windows)
    found: Tree = {}
    for kind in ("weight", "corrected"):
        columns = [f"{kind}.{m}" for m in modalities]
        by_class = table.groupby("label")[columns].mean()
        by_subject = table.groupby("subject")[columns].mean()
        found[kind] = {
            "by_class": {classes[int(k)]: row for k, row in _rows(by_class, modalities)},
            "by_person": {str(k): row for k, row in _rows(by_subject, modalities)},
        }
    found["classes_differ"] = {}
    for m in modalities:
        subject_means = table.pivot_table(f"corrected.{m}", "subject", "label").dropna()
        varied = subject_means.nunique(axis=1).max() > 1  # of a plain mean, and of one that diverged, there is no test
        if len(subject_means) >= statistics.MIN_SUBJECTS and subject_means.shape[1] > 2 and varied:
            p = float(stats.friedmanchisquare(*subject_means.to_numpy().T).pvalue)
            found["classes_differ"][m] = {"people": len(subject_means), "p": p}
    return found


def _rows(table: pd.DataFrame, names: Sequence[str]) -> list[tuple[Any, dict[str, float]]]:
    rows = zip(table.index, table.to_numpy(), strict=True)
    return [(key, dict(zip(names, map(float, row), strict=True))) for key, row in rows]


def gap(windows: pd.DataFrame, trained: pd.DataFrame, modalities: Sequence[str]) -> Tree:
    """Accuracy per recording on recordings that were trained on, and on those that were tested: of those in which a
    source has something to say, which need not be as many on both sides."""
    return {
        source: {"train": _share(trained, source), "test": _share(windows, source), "recordings": count(trained)}
        for source in sources_of(modalities)
    }


def _share(windows: pd.DataFrame, source: str) -> float:
    table = per_fold(windows)
    guess = predict_classes(table, source)
    right = (guess == table["label"].to_numpy())[guess >= 0]
    return float(right.mean()) if len(right) else math.nan


def count(windows: pd.DataFrame) -> int:
    return len(windows[["fold", "subject", "recording"]].drop_duplicates())


def quality(windows: pd.DataFrame, measured: pd.DataFrame, modalities: Sequence[str]) -> list[Tree]:
    """Does what was measured of the signals go with accuracy? Spearman's rank correlation over people, Holm over all.

    Args:
        measured: One row a recording: `subject`, `recording`, and columns of `shard.QUALITY`.
    """
    sources = sources_of(modalities)
    correct = correct_per_recording(windows, sources).merge(measured, on=["subject", "recording"], how="left")
    subject_means = correct.drop(columns=["recording", "label"]).groupby("subject").mean()
    found: list[Tree] = []
    for column in [c for c in measured.columns if c not in ("subject", "recording")]:
        m = column.split("_")[0]
        for source in dict.fromkeys((m, sources[-1])):
            both = subject_means[[column, source]].dropna() if source in sources else subject_means[:0]
            if len(both) < 3:
                continue
            constant = both[column].nunique() < 2 or both[source].nunique() < 2
            few = len(both) < statistics.MIN_SUBJECTS
            correlation: Any = None if constant or few else stats.spearmanr(both[column], both[source])
            points = [[str(p), float(x), float(y)] for p, (x, y) in zip(both.index, both.to_numpy(), strict=True)]
            rho, p = (None, None) if correlation is None else (float(correlation.statistic), float(correlation.pvalue))
            found.append({"measured": column, "source": source, "rho": rho, "p": p, "points": points})
    tested = [one for one in found if one["p"] is not None]
    for one, p in zip(tested, statistics.holm([one["p"] for one in tested]), strict=True):
        one["holm"] = p
    return found


def worst(rows: list[Tree], windows: pd.DataFrame, measured: pd.DataFrame | None, classes: Sequence[str]) -> list[Tree]:
    """The people with the lowest accuracy, with what of theirs went where, and how their signals measured.

    Args:
        rows: From `people`.
    """
    table = average_per_recording(windows)
    found = []
    for row in rows[::-1][: min(WORST, len(rows) // 2)]:
        mine = table[table["subject"] == row["subject"]]
        guess = predict_classes(mine, "fusion")
        wrong = guess != mine["label"].to_numpy()
        pairs = pd.Series(
            [f"{classes[t]} as {classes[g]}" for t, g in zip(mine["label"][wrong], guess[wrong], strict=True) if g >= 0]
        )
        one: Tree = {**row, "mistakes": {str(k): int(v) for k, v in pairs.value_counts().head(3).items()}}
        if measured is not None:
            of_mine = measured[measured["subject"] == row["subject"]].drop(columns=["subject", "recording"]).mean()
            one["measured"] = {str(k): float(v) for k, v in of_mine.items()}
        found.append(one)
    return found


def plain(value: Any) -> Any:
    """What JSON can hold: numbers that are not finite become None."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else asdict(value)

"""Whole protocols against each other, against published results, and against themselves with another seed."""

import importlib.resources
import math
from collections.abc import Sequence

import pandas as pd

from eav_ray.report import statistics
from eav_ray.report.measure import Tree, count, units
from eav_ray.report.table import correct_per_recording, sources_of
from eav_ray.training.metrics import FRAMES_CORRECT_SUFFIX, predict_classes

REFERENCE = "Yin, Shin, Li and Lee 2024, arXiv 2411.00822: one model a person, the protocol `paper`, per frame"


def published() -> pd.DataFrame:
    """Accuracy, 0 to 1, of the reference on EAV: rows subject1 to subject42; video, audio, eeg, multimodal."""
    text = importlib.resources.files("eav_ray.report").joinpath("yin2024.csv").read_text()
    rows = [line.split(",") for line in text.split()]
    table = pd.DataFrame([[float(v) / 100 for v in row[1:]] for row in rows[1:]], columns=rows[0][1:])
    table.index = pd.Index([f"subject{row[0]}" for row in rows[1:]])
    return table


def protocols(tables: dict[str, pd.DataFrame], modalities: Sequence[str]) -> list[Tree]:
    """Protocols side by side: every source per frame, window and recording, mean and SD over people.

    Args:
        tables: Protocol -> predictions of its test recordings.
    """
    found = []
    for name, windows in tables.items():
        sources = sources_of(modalities)
        subject_accuracy = statistics.compute_subject_accuracy(correct_per_recording(windows, sources), sources)
        found.append(
            {
                "protocol": name,
                "people": len(subject_accuracy),
                "recordings": count(windows),
                "sources": {
                    s: {
                        **units(windows, s),
                        "sd": float(subject_accuracy[s].std(ddof=1)) if len(subject_accuracy) > 1 else math.nan,
                    }
                    for s in sources
                },
            }
        )
    return found


def inflation(tables: dict[str, pd.DataFrame], modalities: Sequence[str], base: str) -> list[Tree]:
    """What a protocol adds to the accuracy of `base`, paired over the people of both, Holm over the protocols.

    Each in its own unit: `paper` per frame, all others per recording.
    """
    source = sources_of(modalities)[-1]
    means = {
        name: as_published(table, modalities)[source]
        if name == "paper"
        else statistics.compute_subject_accuracy(correct_per_recording(table, [source]), [source])[source]
        for name, table in tables.items()
    }
    found = []
    for name, mine in means.items():
        if name == base:
            continue
        both = pd.concat([mine, means[base]], axis=1, keys=["mine", "base"]).dropna()
        gained = (both["mine"] - both["base"]).to_numpy()
        p, effect = statistics.signed_rank(gained)
        found.append(
            {
                "protocol": name,
                "unit": "frame" if name == "paper" else "recording",
                "base": base,
                "source": source,
                "people": len(both),
                "difference": float(gained.mean()) if len(gained) else math.nan,
                "p": p,
                "effect": effect,
            }
        )
    return _with_holm(found)


def against_reference(ours: pd.DataFrame, modalities: Sequence[str]) -> list[Tree]:
    """Ours against the published accuracy, person by person, Holm over the sources.

    Args:
        ours: Rows people, columns sources, 0 to 1.
    """
    theirs = published().loc[list(ours.index)]
    # The published fusion reads all three: one of two of them answers another question.
    pairs = [(m, m) for m in modalities] + ([("fusion", "multimodal")] if len(modalities) == 3 else [])
    found = []
    for source, column in pairs:
        gained = (ours[source] - theirs[column]).dropna().to_numpy()
        p, effect = statistics.signed_rank(gained)
        found.append(
            {
                "ours": source,
                "people": len(gained),
                "mean": float(ours[source].mean()),
                "published": float(theirs[column].mean()),
                "difference": float(gained.mean()),
                "p": p,
                "effect": effect,
            }
        )
    return _with_holm(found)


def as_published(windows: pd.DataFrame, modalities: Sequence[str]) -> pd.DataFrame:
    """Accuracy of each person in the unit of the reference: frames where a source sees video, else windows."""
    sources = sources_of(modalities)
    right = pd.DataFrame({"subject": windows["subject"]})
    for source in sources:
        of_windows = pd.Series(
            (predict_classes(windows, source) == windows["label"].to_numpy()).astype(float), windows.index
        )
        of_frames = windows.get(source + FRAMES_CORRECT_SUFFIX)
        right[source] = of_windows if of_frames is None else of_frames.fillna(of_windows)
    return right.groupby("subject").mean()


def _with_holm(found: list[Tree]) -> list[Tree]:
    """Adds `holm` and a `verdict` to comparisons that have `p` and `people`."""
    for one, p in zip(found, statistics.holm([one["p"] for one in found]), strict=True):
        few = one["people"] < statistics.MIN_SUBJECTS
        significance = "significant" if p < statistics.ALPHA else "not significant"
        one |= {"holm": p, "verdict": f"of {one['people']} people none could be significant" if few else significance}
    return found


def seeds(tables: dict[int, pd.DataFrame], modalities: Sequence[str]) -> Tree:
    """The noise floor: how far apart trainings lie that differ by nothing but the seed.

    Args:
        tables: Seed -> predictions of equal test recordings.
    """
    sources = sources_of(modalities)
    means = {
        seed: statistics.compute_subject_accuracy(correct_per_recording(t, sources), sources).mean()
        for seed, t in tables.items()
    }
    table = pd.DataFrame(means).T
    return {
        "seeds": sorted(tables),
        "sources": {
            s: {
                "means": {str(k): float(v) for k, v in table[s].items()},
                "sd": float(table[s].std(ddof=1)) if len(table) > 1 else math.nan,
            }
            for s in sources
        },
    }

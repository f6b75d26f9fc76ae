"""Whole protocols against each other, against published results, and against themselves with another seed."""

import importlib.resources
from collections.abc import Sequence

import pandas as pd

from eav_ray.evaluation import statistics
from eav_ray.evaluation.comparisons import compare_differences, comparison_to_dict
from eav_ray.evaluation.correctness import list_sources, mark_correct_recordings
from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.evaluation.summary import compute_unit_accuracies, count_recordings
from eav_ray.training.metrics import FRAMES_CORRECT_SUFFIX, predict_classes

PUBLISHED_SOURCE = "Yin, Shin, Li and Lee 2024, arXiv 2411.00822: one model a person, the protocol `paper`, per frame"


def read_published_accuracy() -> pd.DataFrame:
    """Accuracy, 0 to 1, of the reference on EAV: rows subject1 to subject42; video, audio, eeg, multimodal."""
    with importlib.resources.files("eav_ray.evaluation").joinpath("yin2024.csv").open() as file:
        table = pd.read_csv(file, index_col=0) / 100
    return table.rename(index=lambda number: f"subject{number}").rename_axis(None)


def summarize_protocols(tables: dict[str, pd.DataFrame], modalities: Sequence[str]) -> list[ResultsTree]:
    """Protocols side by side: every source per frame, window and recording, mean and SD over people.

    Args:
        tables: Protocol -> predictions of its test recordings.
    """
    rows = []
    for name, windows in tables.items():
        sources = list_sources(modalities)
        subject_accuracy = statistics.compute_subject_accuracy(mark_correct_recordings(windows, sources), sources)
        rows.append(
            {
                "protocol": name,
                "n_subjects": len(subject_accuracy),
                "recordings": count_recordings(windows),
                "sources": {
                    s: {**compute_unit_accuracies(windows, s), "sd": float(subject_accuracy[s].std())} for s in sources
                },
            }
        )
    return rows


def compare_protocols(tables: dict[str, pd.DataFrame], modalities: Sequence[str], base: str) -> list[ResultsTree]:
    """What a protocol adds to the accuracy of `base`, paired over the people of both, Holm over the protocols.

    Each in its own unit: `paper` per frame, all others per recording.
    """
    source = list_sources(modalities)[-1]
    means = {
        name: compute_published_unit_accuracy(table, modalities)[source]
        if name == "paper"
        else statistics.compute_subject_accuracy(mark_correct_recordings(table, [source]), [source])[source]
        for name, table in tables.items()
    }
    rows, differences = [], []
    for name, subject_means in means.items():
        if name == base:
            continue
        paired = pd.concat([subject_means, means[base]], axis=1, keys=["mine", "base"]).dropna()
        unit = "frame" if name == "paper" else "recording"
        rows.append({"protocol": name, "unit": unit, "base": base, "source": source})
        differences.append((name, base, (paired["mine"] - paired["base"]).to_numpy()))
    tests = compare_differences(differences)
    return [row | comparison_to_dict(test) for row, test in zip(rows, tests, strict=True)]


def compare_with_published(ours: pd.DataFrame, modalities: Sequence[str]) -> list[ResultsTree]:
    """Ours against the published accuracy, person by person, Holm over the sources.

    Args:
        ours: Rows people, columns sources, 0 to 1.
    """
    theirs = read_published_accuracy().loc[list(ours.index)]
    # The published fusion reads all three: one of two of them answers another question.
    pairs = [(m, m) for m in modalities] + ([("fusion", "multimodal")] if len(modalities) == 3 else [])
    rows, differences = [], []
    for source, column in pairs:
        rows.append({"ours": source, "mean": float(ours[source].mean()), "published": float(theirs[column].mean())})
        differences.append((source, column, (ours[source] - theirs[column]).dropna().to_numpy()))
    tests = compare_differences(differences)
    return [row | comparison_to_dict(test) for row, test in zip(rows, tests, strict=True)]


def compute_published_unit_accuracy(windows: pd.DataFrame, modalities: Sequence[str]) -> pd.DataFrame:
    """Accuracy of each person in the unit of the reference: frames where a source sees video, else windows."""
    sources = list_sources(modalities)
    correct = pd.DataFrame({"subject": windows["subject"]})
    for source in sources:
        window_correct = pd.Series(
            (predict_classes(windows, source) == windows["label"].to_numpy()).astype(float), windows.index
        )
        frame_correct = windows.get(source + FRAMES_CORRECT_SUFFIX)
        correct[source] = window_correct if frame_correct is None else frame_correct.fillna(window_correct)
    return correct.groupby("subject").mean()


def summarize_seeds(tables: dict[int, pd.DataFrame], modalities: Sequence[str]) -> ResultsTree:
    """The noise floor: how far apart trainings lie that differ by nothing but the seed.

    Args:
        tables: Seed -> predictions of equal test recordings.
    """
    sources = list_sources(modalities)
    means = {
        seed: statistics.compute_subject_accuracy(mark_correct_recordings(t, sources), sources).mean()
        for seed, t in tables.items()
    }
    table = pd.DataFrame(means).T
    return {
        "seeds": sorted(tables),
        "sources": {
            s: {"means": {str(k): float(v) for k, v in table[s].items()}, "sd": float(table[s].std())} for s in sources
        },
    }

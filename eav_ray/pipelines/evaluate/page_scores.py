"""Score predictions for a results page: one way for classes, one for numbers.

This is the one place of the page that knows which of the two it is, as `reporting.score_reports` is of the terminal;
`choose_page_scores` chooses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd

from eav_ray.data.shards.dataset import Dataset
from eav_ray.evaluation import (
    number_protocols,
    number_summary,
    probability_calibration,
    protocol_comparison,
    stacking,
    statistics,
    summary,
)
from eav_ray.evaluation.correctness import list_sources, mark_correct_recordings
from eav_ray.evaluation.number_scores import add_constant_source
from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting.number_tables import compute_test_score

Tables = dict[str, pd.DataFrame]  # predictions of test recordings by protocol


class PageScores(Protocol):
    """What a page says of predictions, by key of `results.json`."""

    @property
    def modalities(self) -> list[str]:
        """Return the modalities of the predictions."""
        ...

    def prepare(self, predictions: pd.DataFrame, validation: pd.DataFrame | None) -> pd.DataFrame:
        """Add sources to the test predictions that are made of other rows."""
        ...

    def name_outputs(self) -> ResultsTree:
        """Name what is predicted."""
        ...

    def summarize(self, predictions: pd.DataFrame, published: pd.DataFrame | None) -> ResultsTree:
        """Score the test predictions.

        Args:
            published: Accuracy of the same people, for real EAV alone.
        """
        ...

    def summarize_signals(self, tree: ResultsTree, predictions: pd.DataFrame, quality: pd.DataFrame) -> ResultsTree:
        """Hold scores against what preprocessing measured.

        Args:
            tree: From `summarize`.
        """
        ...

    def summarize_training(
        self, predictions: pd.DataFrame, train: pd.DataFrame, validation: pd.DataFrame | None, *, out_of_fold: bool
    ) -> ResultsTree:
        """Hold the test predictions against those of the training side, and use those of the validation side.

        Args:
            predictions: From `prepare`.
            out_of_fold: Whether the validation rows are those of inner folds.
        """
        ...

    def summarize_protocols(self, tables: Tables) -> list[ResultsTree]:
        """Score protocols side by side."""
        ...

    def compare_protocols(self, tables: Tables, base: str) -> list[ResultsTree]:
        """Say what each protocol adds to a base."""
        ...

    def summarize_seeds(self, tables: dict[int, pd.DataFrame]) -> ResultsTree:
        """Say how far trainings lie apart that differ by their seed alone."""
        ...

    def score_search(self, tables: Sequence[pd.DataFrame]) -> float | None:
        """Score what a search chose as the search did, on the test recordings of each checkpoint."""
        ...


@dataclass(frozen=True)
class ClassScores:
    """Accuracy and all that goes with classes."""

    modalities: list[str]
    classes: tuple[str, ...]

    def prepare(self, predictions: pd.DataFrame, validation: pd.DataFrame | None) -> pd.DataFrame:
        stacked = stacking.add_stacking(predictions, validation, self.modalities, len(self.classes))
        return predictions if stacked is None else stacked

    def name_outputs(self) -> ResultsTree:
        return {"classes": list(self.classes)}

    def summarize(self, predictions: pd.DataFrame, published: pd.DataFrame | None) -> ResultsTree:
        accuracy = summary.summarize_accuracy(predictions, self.modalities, len(self.classes))
        recordings_of_subject = max(1, accuracy["recordings"] // accuracy["n_subjects"])
        low, high = statistics.compute_chance_band(recordings_of_subject, len(self.classes))
        return {
            "accuracy": accuracy,
            "chance_of_subject": {"level": 1 / len(self.classes), "low": low, "high": high},
            "subjects": summary.summarize_subjects(predictions, self.modalities, published),
            "comparisons": summary.compare_sources(predictions, self.modalities),
            "confusion": summary.count_confusions(predictions, self.modalities, len(self.classes)),
            "weights": summary.summarize_modality_weights(predictions, self.modalities, self.classes),
        }

    def summarize_signals(self, tree: ResultsTree, predictions: pd.DataFrame, quality: pd.DataFrame) -> ResultsTree:
        return {
            "quality": summary.correlate_signal_quality(predictions, quality, self.modalities),
            "worst_subjects": summary.summarize_worst_subjects(tree["subjects"], predictions, quality, self.classes),
        }

    def summarize_training(
        self, predictions: pd.DataFrame, train: pd.DataFrame, validation: pd.DataFrame | None, *, out_of_fold: bool
    ) -> ResultsTree:
        tree: ResultsTree = {}
        sources = list_sources(self.modalities, predictions)
        if len(self.modalities) > 1:
            added = stacking.STACKING in sources
            tree["stacking_note"] = stacking.describe_stacking(validation, added=added, out_of_fold=out_of_fold)
        tree["calibration"] = probability_calibration.summarize_calibration(predictions, sources, validation)
        tree["calibration_note"] = describe_temperature(validation, out_of_fold)
        tree["generalization_gap"] = summary.compute_generalization_gap(predictions, train, self.modalities)
        return tree

    def summarize_protocols(self, tables: Tables) -> list[ResultsTree]:
        return protocol_comparison.summarize_protocols(tables, self.modalities)

    def compare_protocols(self, tables: Tables, base: str) -> list[ResultsTree]:
        return protocol_comparison.compare_protocols(tables, self.modalities, base)

    def summarize_seeds(self, tables: dict[int, pd.DataFrame]) -> ResultsTree:
        return protocol_comparison.summarize_seeds(tables, self.modalities)

    def score_search(self, tables: Sequence[pd.DataFrame]) -> float | None:
        correct = [mark_correct_recordings(table, ["fusion"]) for table in tables]
        return float(np.mean([c.groupby("label")["fusion"].mean().mean() for c in correct])) if correct else None


def describe_temperature(predictions: pd.DataFrame | None, out_of_fold: bool) -> str:
    """Say what temperatures were fitted on."""
    if predictions is None:
        return (
            "No temperature: this split has no validation rows. --temperature trains the inner folds of the training "
            "people and takes it from their predictions."
        )
    source = "of its inner folds" if out_of_fold else "of its validation side"
    sentence = f"Each model has a temperature {source}, {len(predictions)} windows in all"
    return f"{sentence}: never of recordings that it is tested on."


@dataclass(frozen=True)
class NumberScores:
    """CCC, Pearson and RMSE of each target.

    Attributes:
        ids: One row a window, with the targets of all recordings, as `WindowCache.ids`.
        train_ids_by_fold: What each fold was trained on, of which a constant prediction is the mean.
    """

    modalities: list[str]
    targets: tuple[str, ...]
    ids: pd.DataFrame
    train_ids_by_fold: dict[int, tuple[str, ...]]

    def prepare(self, predictions: pd.DataFrame, validation: pd.DataFrame | None) -> pd.DataFrame:
        return add_constant_source(predictions, self.ids, self.train_ids_by_fold)

    def name_outputs(self) -> ResultsTree:
        return {"classes": [], "targets": list(self.targets)}

    def summarize(self, predictions: pd.DataFrame, published: pd.DataFrame | None) -> ResultsTree:
        return {
            "scores": number_summary.summarize_numbers(predictions, self.modalities, self.targets),
            "subjects": number_summary.summarize_number_subjects(predictions, self.modalities, self.targets),
            "points": number_summary.list_number_points(predictions, self.modalities, self.targets),
            "comparisons": number_summary.compare_numbers_on_page(predictions, self.modalities, self.targets),
            "weights": number_summary.summarize_number_weights(predictions, self.modalities),
        }

    def summarize_signals(self, tree: ResultsTree, predictions: pd.DataFrame, quality: pd.DataFrame) -> ResultsTree:
        return {
            "quality": number_summary.correlate_number_quality(predictions, quality, self.modalities, self.targets),
            "worst_subjects": number_summary.summarize_worst_number_subjects(tree["subjects"], quality),
        }

    def summarize_training(
        self, predictions: pd.DataFrame, train: pd.DataFrame, validation: pd.DataFrame | None, *, out_of_fold: bool
    ) -> ResultsTree:
        gap = number_summary.compute_number_gap(predictions, train, self.modalities, self.targets)
        return {"generalization_gap": gap}

    def summarize_protocols(self, tables: Tables) -> list[ResultsTree]:
        return number_protocols.summarize_number_protocols(tables, self.modalities, self.targets)

    def compare_protocols(self, tables: Tables, base: str) -> list[ResultsTree]:
        return number_protocols.compare_number_protocols(tables, self.modalities, self.targets, base)

    def summarize_seeds(self, tables: dict[int, pd.DataFrame]) -> ResultsTree:
        return number_protocols.summarize_number_seeds(tables, self.modalities, self.targets)

    def score_search(self, tables: Sequence[pd.DataFrame]) -> float | None:
        return float(np.mean([compute_test_score(table, self.modalities) for table in tables])) if tables else None


def choose_page_scores(
    data: Dataset, modalities: list[str], classes: tuple[str, ...], train_ids_by_fold: dict[int, tuple[str, ...]]
) -> PageScores:
    """Choose how the predictions of a data set are scored.

    Args:
        classes: What labels and logits are numbered by, where classes are predicted.
        train_ids_by_fold: The recordings that each fold was trained on.
    """
    if data.index.targets:
        return NumberScores(modalities, data.index.targets, data.windows.ids, train_ids_by_fold)
    return ClassScores(modalities, classes)

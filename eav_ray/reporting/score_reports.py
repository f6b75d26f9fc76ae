"""Say in the terminal what predictions are worth: one report for classes, one for numbers.

This is the one place that knows which of the two it is; commands call `choose_report` and ask no further.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pandas as pd

from eav_ray.config import Experiment
from eav_ray.data.shards.dataset import Dataset
from eav_ray.evaluation.correctness import list_sources, mark_correct_recordings
from eav_ray.evaluation.number_scores import add_constant_source, average_numbers, list_number_sources
from eav_ray.evaluation.number_summary import summarize_numbers
from eav_ray.evaluation.summary import compute_optimism
from eav_ray.reporting.number_tables import (
    compute_test_score,
    format_number_comparisons,
    format_number_optimism,
    format_number_protocol,
    format_number_scores,
)
from eav_ray.reporting.tables import (
    format_accuracy_table,
    format_fusion_comparison,
    format_optimism,
    format_protocol_table,
    format_single_class_warnings,
)

Findings = dict[int, list[dict[str, Any]]]  # fold -> what the collapse check found in its model


class ScoreReport(Protocol):
    """How predictions are reported in the terminal."""

    @property
    def heading(self) -> str:
        """Say what the numbers are, before how many recordings they are of."""
        ...

    def list_recordings(self, windows: pd.DataFrame, modalities: Sequence[str]) -> pd.DataFrame:
        """List recordings, one row each, with what each source makes of it."""
        ...

    def format_checkpoint(self, windows: pd.DataFrame, modalities: Sequence[str]) -> list[str]:
        """Format the test predictions of one checkpoint."""
        ...

    def format_protocol(self, windows: pd.DataFrame, modalities: Sequence[str], findings: Findings) -> str:
        """Format the test predictions of a protocol, which have a column `fold`."""
        ...

    def format_warnings(self, windows: pd.DataFrame, modalities: Sequence[str], experiment: Experiment) -> list[str]:
        """Warn of models that say the same of nearly all windows, a line each."""
        ...

    def format_searches(
        self, windows: pd.DataFrame, modalities: Sequence[str], searches: Mapping[int, dict[str, Any]]
    ) -> str:
        """Format what searches of folds promised, and what came of it.

        Args:
            searches: Fold -> `inner_score` and `changes` of what was chosen.
        """
        ...


@dataclass(frozen=True)
class ClassReport:
    """Accuracy in percent.

    Attributes:
        bayes: The best possible accuracy of each source, where it is known.
    """

    classes: Sequence[str]
    bayes: dict[str, float] = field(default_factory=dict)
    heading: str = "accuracy in percent"

    def list_recordings(self, windows: pd.DataFrame, modalities: Sequence[str]) -> pd.DataFrame:
        return mark_correct_recordings(windows, list_sources(modalities))

    def format_checkpoint(self, windows: pd.DataFrame, modalities: Sequence[str]) -> list[str]:
        correct = self.list_recordings(windows, modalities)
        lines = [format_accuracy_table(correct, list_sources(modalities), len(self.classes), self.bayes)]
        return lines + ([format_fusion_comparison(correct, modalities)] if len(modalities) > 1 else [])

    def format_protocol(self, windows: pd.DataFrame, modalities: Sequence[str], findings: Findings) -> str:
        return format_protocol_table(windows, modalities, len(self.classes), findings)

    def format_warnings(self, windows: pd.DataFrame, modalities: Sequence[str], experiment: Experiment) -> list[str]:
        return format_single_class_warnings(windows, modalities, self.classes, experiment)

    def format_searches(
        self, windows: pd.DataFrame, modalities: Sequence[str], searches: Mapping[int, dict[str, Any]]
    ) -> str:
        by_fold = {n: rows for n, rows in windows.groupby("fold")}
        return format_optimism(
            {n: compute_optimism(by_fold[n], s["inner_score"], s["changes"]) for n, s in searches.items()}
        )


@dataclass(frozen=True)
class NumberReport:
    """CCC, Pearson and RMSE of each target.

    Attributes:
        ids: One row a window, with the targets of all recordings, as `WindowCache.ids`.
        train_ids_by_fold: What each fold was trained on, of which a constant prediction is the mean.
    """

    targets: Sequence[str]
    ids: pd.DataFrame
    train_ids_by_fold: Mapping[int, Sequence[str]]
    heading: str = "CCC, Pearson and RMSE"

    def add_constant(self, windows: pd.DataFrame) -> pd.DataFrame:
        """Add the constant prediction; without a column `fold` all rows are of the only one."""
        if "fold" not in windows:
            windows = windows.assign(fold=next(iter(self.train_ids_by_fold)))
        return add_constant_source(windows, self.ids, self.train_ids_by_fold)

    def list_recordings(self, windows: pd.DataFrame, modalities: Sequence[str]) -> pd.DataFrame:
        return average_numbers(windows, list_number_sources(modalities))

    def format_checkpoint(self, windows: pd.DataFrame, modalities: Sequence[str]) -> list[str]:
        windows = self.add_constant(windows)
        return [
            *format_number_scores(summarize_numbers(windows, modalities, self.targets)),
            *format_number_comparisons(windows, modalities, self.targets),
        ]

    def format_protocol(self, windows: pd.DataFrame, modalities: Sequence[str], findings: Findings) -> str:
        return format_number_protocol(self.add_constant(windows), modalities, self.targets, findings)

    def format_warnings(self, windows: pd.DataFrame, modalities: Sequence[str], experiment: Experiment) -> list[str]:
        return []  # a constant number has a CCC of 0, which the table shows

    def format_searches(
        self, windows: pd.DataFrame, modalities: Sequence[str], searches: Mapping[int, dict[str, Any]]
    ) -> str:
        by_fold = {n: rows for n, rows in windows.groupby("fold")}
        tested = {n: compute_test_score(by_fold[n], modalities) for n in searches}
        return format_number_optimism(searches, tested)


def choose_report(
    data: Dataset, train_ids_by_fold: Mapping[int, Sequence[str]], bayes: dict[str, float] | None = None
) -> ScoreReport:
    """Choose how predictions of a data set are reported.

    Args:
        train_ids_by_fold: The recordings that each fold was trained on.
        bayes: As of `ClassReport`.
    """
    if data.index.targets:
        return NumberReport(data.index.targets, data.windows.ids, train_ids_by_fold)
    return ClassReport(data.index.classes, bayes or {})

"""From predicted numbers to what a person reads: columns and trees by the names of targets. Runs without torch."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from eav_ray.data.recordings import TARGET_PREFIX
from eav_ray.evaluation.results_tree import finite_or_none
from eav_ray.training.metrics import MEAN_SOURCE, VALUE_PREFIX, is_averaged_column, list_modality_sources

PREDICTED_PREFIX = "predicted."
TRUE_PREFIX = "true."  # before the name of a target that is that of another column


def name_value_column(source: str, target: str) -> str:
    """Name the column of one number: `predicted.<target>` is the fusion's, `audio.predicted.<target>` a modality's."""
    return f"{PREDICTED_PREFIX}{target}" if source == "fusion" else f"{source}.{PREDICTED_PREFIX}{target}"


def name_numbers(table: pd.DataFrame, targets: Sequence[str]) -> pd.DataFrame:
    """Name what a table of predictions (`predictions.build_predictions`, or its means) has by position.

    Args:
        targets: Names, in their order.
    Returns:
        What names the rows; `<target>`, what is true, NaN where it is unknown; `predicted.<target>` of the fusion,
        `<modality>.predicted.<target>` and, of several modalities, `mean.predicted.<target>`, NaN where a source has
        nothing to say; modality weights. A target that has the name of another column is `true.<target>`.
    """
    truth = [f"{TARGET_PREFIX}{k}" for k in range(len(targets))]
    ids = table[[c for c in table.columns if not is_averaged_column(c) and c not in (*truth, "label")]]
    weights = table[[c for c in table.columns if is_averaged_column(c) and f".{VALUE_PREFIX}" not in c]]
    taken = {*ids.columns, *weights.columns}
    true = {
        f"{TRUE_PREFIX}{name}" if name in taken else name: table[column]
        for name, column in zip(targets, truth, strict=True)
        if column in table
    }
    modalities = list_modality_sources(table)
    sources = ("fusion", *modalities, *([MEAN_SOURCE] if len(modalities) > 1 else []))
    predicted = {
        name_value_column(source, name): table[column]
        for source in sources
        for k, name in enumerate(targets)
        if (column := f"{source}.{VALUE_PREFIX}{k}") in table
    }
    # Answers first, then what they come from.
    return pd.concat([ids, pd.DataFrame(true | predicted, index=table.index), weights], axis=1)


def build_number_trees(table: pd.DataFrame, targets: Sequence[str]) -> list[dict[str, Any]]:
    """Turn each row of a table of predicted numbers into a tree of JSON: what is predicted, and by each modality.

    Numbers that are not finite become null.
    """
    modalities = list_modality_sources(table)

    def list_values(row: pd.Series, source: str) -> dict[str, float | None]:
        return {name: finite_or_none(row[f"{source}.{VALUE_PREFIX}{k}"]) for k, name in enumerate(targets)}

    return [
        {
            "predicted": list_values(row, "fusion"),
            "weights": {m: finite_or_none(row[f"weight.{m}"]) for m in modalities},
            "corrected_weights": {m: finite_or_none(row[f"corrected.{m}"]) for m in modalities},
            "by_modality": {m: list_values(row, m) for m in modalities},
        }
        for _, row in table.iterrows()
    ]

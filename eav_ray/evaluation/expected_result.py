"""What a final model, which all subjects trained, is expected to be worth: what a protocol found of its settings.

It has no recording left that could test it. A protocol has tested models of the same settings, or of settings that were
searched in the same way, on subjects whom they never saw; each of them was trained on fewer.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from eav_ray.data.splits import ALL_SUBJECTS
from eav_ray.errors import ConfigError
from eav_ray.evaluation.correctness import list_sources
from eav_ray.evaluation.results_tree import ResultsTree, to_json_value
from eav_ray.evaluation.summary import summarize_accuracy
from eav_ray.training.metrics import (
    RECORDING_COLUMNS,
    average_per_recording,
    holds_numbers,
    list_output_sources,
    list_truth_columns,
    select_values,
)
from eav_ray.training.number_scores import score_numbers
from eav_ray.words import format_count

if TYPE_CHECKING:
    from eav_ray.training.checkpoint import OpenedCheckpoint

SCORE_KEYS = (
    "mean",
    "sd",
    "interval",
    "balanced",
    "balanced_interval",
)  # of a source, as `summarize_accuracy` has them


def summarize_expected_result(
    windows: pd.DataFrame, modalities: Sequence[str], n_classes: int, *, source: str, description: str
) -> ResultsTree:
    """Summarize predictions of subjects whom their models never saw.

    Args:
        windows: Predictions, one row a window, with a column `fold`.
        source: Where the predictions lie in the results store.
        description: What they are of, in a few words.

    Returns:
        A tree of JSON: `source`, `description`, `recordings`, `subjects`, and by source of predictions `scores`: of
        classes `mean` accuracy over subjects, its `sd` and 95 % `interval`, `balanced` accuracy and its interval,
        beside `chance`; of numbers `ccc`, `pearson` and `rmse`, means over targets.
    """
    found: ResultsTree = {
        "source": source,
        "description": description,
        "recordings": len(windows.drop_duplicates(RECORDING_COLUMNS)),
        "subjects": int(windows["subject"].nunique()),
        "main_source": list_sources(modalities)[-1],
    }
    if holds_numbers(windows):
        return to_json_value(found | {"scores": _score_numbers(windows)})
    accuracy = summarize_accuracy(windows, modalities, n_classes)
    scores = {name: {key: one[key] for key in SCORE_KEYS} for name, one in accuracy["sources"].items()}
    return to_json_value(
        found | {"scores": scores, "chance": accuracy["chance"]["level"], "unequal": accuracy["unequal"]}
    )


def _score_numbers(windows: pd.DataFrame) -> ResultsTree:
    recordings = average_per_recording(windows)
    true, subjects = recordings[list_truth_columns(recordings)].to_numpy(), recordings["subject"].to_numpy()
    sources = list_output_sources(windows)
    return {source: score_numbers(select_values(recordings, source), true, subjects) for source in sources}


def get_expected_result(checkpoint: "OpenedCheckpoint") -> dict[str, Any] | None:
    """Return the expected result of a final model; None of any other, which has recordings that can test it."""
    return checkpoint.metrics.get("expected_result") if is_final(checkpoint) else None


def is_final(checkpoint: "OpenedCheckpoint") -> bool:
    """Tell whether a model was trained on all subjects."""
    return checkpoint.split.protocol == ALL_SUBJECTS


def refuse_final(checkpoint: "OpenedCheckpoint", action: str) -> None:
    """Refuse to measure a final model on the recordings that it was trained on.

    Args:
        action: What cannot be done, as "adapted".

    Raises:
        ConfigError: The model is a final one.
    """
    if is_final(checkpoint):
        expected = format_expected_result(checkpoint.metrics.get("expected_result", {}))
        raise ConfigError(
            f"{checkpoint.path} was trained on all subjects, so it cannot be {action} with recordings of its own data "
            f"set; {expected or 'its expected result is not known'}; give recordings of other subjects, or the "
            "checkpoint of a fold"
        )


def format_expected_result(expected: Mapping[str, Any]) -> str:
    """Format an expected result in one line; empty where there is none."""
    if not expected:
        return ""
    name, where = expected["main_source"], f"by {expected['description']}"
    score = expected["scores"][name]
    if "ccc" in score:
        worth = f"CCC {_format(score['ccc'], 3)}, RMSE {_format(score['rmse'], 3)}"
    else:
        kind, key = ("balanced accuracy", "balanced") if expected["unequal"] else ("accuracy", "mean")
        low, high = score["interval" if key == "mean" else "balanced_interval"]
        interval = "" if low is None else f" (95 % {100 * low:.2f} to {100 * high:.2f})"
        worth = f"{kind} {_format(score[key], 2, 100)} %{interval}, chance {100 * expected['chance']:.2f}"
    return (
        f"expected of {name} on subjects whom it never saw: {worth}; {where}, "
        f"{format_count(expected['recordings'], 'recording')} of {format_count(expected['subjects'], 'subject')}"
    )


def _format(value: float | None, digits: int, scale: float = 1.0) -> str:
    return "unknown" if value is None else f"{scale * value:.{digits}f}"

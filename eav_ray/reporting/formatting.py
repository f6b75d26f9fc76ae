"""Format numbers for tables and pages."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from eav_ray.evaluation.comparisons import format_subjects_wanted

Format = str | Callable[[Any], str]  # a format specification, or a function

PUBLISHED_LABEL = "published"
MISSING = "–"


def apply_format(value: Any, form: Format) -> str:
    """Format a value; a dash stands for one that is missing or not a number."""
    if value is None or value != value:
        return MISSING
    return form(value) if callable(form) else format(value, form)


def format_percent(share: float | None, digits: int = 2) -> str:
    return apply_format(None if share is None else 100 * share, f".{digits}f")


def format_points(difference: float | None, digits: int = 2) -> str:
    return apply_format(None if difference is None else 100 * difference, f"+.{digits}f")


def format_interval(pair: Sequence[float | None], form: Format = format_percent) -> str:
    """Format both ends; a dash stands for an interval that there is not: of one person, or of people who are equal."""
    if pair[0] is None or pair[0] != pair[0]:
        return MISSING
    return f"{apply_format(pair[0], form)} to {apply_format(pair[1], form)}"


# For tables of many columns.
format_short_percent = partial(format_percent, digits=1)
format_short_points = partial(format_points, digits=1)


def format_bounds(estimate: Mapping[str, float], form: Format = format_short_percent) -> str:
    """Format the ends of an estimate's interval."""
    return format_interval((estimate["low"], estimate["high"]), form)


def format_point_bounds(difference: Mapping[str, float]) -> str:
    return format_bounds(difference, format_short_points)


def format_mean(estimate: Mapping[str, float]) -> str:
    return format_short_percent(estimate["mean"])


def format_value(value: Any) -> str:
    """Format a value of a search space."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def format_changes(changes: Mapping[str, Any] | None) -> str:
    """List the values that a search chose."""
    return ", ".join(f"{key}={format_value(value)}" for key, value in (changes or {}).items())


# Columns of paired tests, as `html.build_table` takes them.
TEST_COLUMNS: list[tuple[str, str, Format]] = [
    ("better", "n_better", ""),
    ("worse", "n_worse", ""),
    ("equal", "n_equal", ""),
    ("Wilcoxon p", "p", ".3g"),
    ("Holm", "holm", ".3g"),
    ("rank-biserial", "effect", "+.2f"),
    ("people wanted", "n_subjects_wanted", format_subjects_wanted),
    ("verdict", "verdict", ""),
]

"""Format numbers for tables and pages."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

PUBLISHED_LABEL = "published"


def format_number(value: Any, form: str) -> str:
    """Format by a format specification; a dash stands for what is missing or not a number."""
    return "–" if value is None or value != value else format(value, form)


def format_percent(share: float | None, digits: int = 2) -> str:
    return format_number(None if share is None else 100 * share, f".{digits}f")


def format_points(difference: float | None, digits: int = 2) -> str:
    return format_number(None if difference is None else 100 * difference, f"+.{digits}f")


# For tables of many columns.
format_short_percent = partial(format_percent, digits=1)
format_short_points = partial(format_points, digits=1)


def format_interval(pair: Sequence[float | None], form: Callable[[float | None], str] = format_percent) -> str:
    return f"{form(pair[0])} to {form(pair[1])}"


def format_bounds(interval: Mapping[str, float], form: Callable[[float | None], str] = format_short_percent) -> str:
    """Format the `low` and `high` of an estimate."""
    return format_interval((interval["low"], interval["high"]), form)


def format_value(value: Any) -> str:
    """Format a value of a search space."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# Columns of paired tests, as `html.build_table` takes them.
TEST_COLUMNS = [
    ("Wilcoxon p", "p", ".3g"),
    ("Holm", "holm", ".3g"),
    ("rank-biserial", "effect", "+.2f"),
    ("verdict", "verdict", ""),
]

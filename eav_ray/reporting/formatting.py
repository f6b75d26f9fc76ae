"""Format numbers for tables and pages."""

from collections.abc import Sequence
from typing import Any

PUBLISHED_LABEL = "published"


def format_percent(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def format_interval(pair: Sequence[float | None]) -> str:
    return f"{format_percent(pair[0])} to {format_percent(pair[1])}"


def format_points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.2f}"


def format_p_value(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def format_decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def format_value(value: Any) -> str:
    """A value of a search space, as it is shown."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)

"""Convert results to plain JSON values."""

import math
from dataclasses import asdict
from typing import Any

import numpy as np

ResultsTree = dict[str, Any]  # results as JSON holds them


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None


def to_json_value(value: Any) -> Any:
    """What JSON can hold: numbers that are not finite become None."""
    if isinstance(value, dict):
        return {str(k): to_json_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else asdict(value)

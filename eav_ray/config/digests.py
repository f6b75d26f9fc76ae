"""Turn an experiment into plain trees and stable hashes."""

import hashlib
import json
from dataclasses import asdict, is_dataclass
from typing import Any


def to_dict(experiment: Any) -> dict[str, Any]:
    """Plain lists, dictionaries and numbers, as they are written to JSON."""
    return json.loads(json.dumps(asdict(experiment)))


def digest(*parts: Any, length: int = 16) -> str:
    """A short hash of JSON-like values; dataclasses count by their fields, and the order of keys is irrelevant."""
    plain = [to_dict(p) if is_dataclass(p) and not isinstance(p, type) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:length]


def flatten_sections(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested sections to dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        nested = isinstance(value, dict) and value
        flat |= flatten_sections(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat

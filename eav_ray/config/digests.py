"""Turn an experiment into plain trees and stable hashes."""

import hashlib
import json
from dataclasses import asdict, is_dataclass
from typing import Any


def to_dict(experiment: Any) -> dict[str, Any]:
    """Plain lists, dictionaries and numbers, as they are written to JSON."""
    return json.loads(json.dumps(asdict(experiment)))


class EncodedJSON(str):
    """The JSON text of a value, or of some after each other: what many digests share is encoded once."""

    __slots__ = ()


class HashedParts:
    """The hash of what many digests begin with."""

    def __init__(self, *parts: Any) -> None:
        self._hash = hashlib.sha256(f"[{encode_parts(*parts)}".encode())

    def digest(self, *parts: Any, length: int = 16) -> str:
        """Return `digest` of what came before and these parts."""
        whole = self._hash.copy()
        whole.update(f", {encode_parts(*parts)}]".encode())
        return whole.hexdigest()[:length]


def digest(*parts: Any, length: int = 16) -> str:
    """A short hash of JSON-like values; dataclasses count by their fields, and the order of keys is irrelevant."""
    return hashlib.sha256(f"[{encode_parts(*parts)}]".encode()).hexdigest()[:length]


def encode_parts(*parts: Any) -> EncodedJSON:
    """Encode parts of a digest."""
    return EncodedJSON(", ".join(part if isinstance(part, EncodedJSON) else _encode(part) for part in parts))


def _encode(part: Any) -> str:
    plain = asdict(part) if is_dataclass(part) and not isinstance(part, type) else part
    return json.dumps(plain, sort_keys=True)


def flatten_sections(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested sections to dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        nested = isinstance(value, dict) and value
        flat |= flatten_sections(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat

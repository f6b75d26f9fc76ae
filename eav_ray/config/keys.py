"""List every key of an experiment, with its type, default and meaning."""

import json
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from eav_ray.config.data_sections import FeatureFile, FeaturePreprocessing
from eav_ray.config.kinds import list_dataset_names
from eav_ray.config.model_sections import KIND_PLACES, find_kind_place, get_kind_place
from eav_ray.config.sections import Experiment
from eav_ray.config.training_sections import EncoderOptimConfig
from eav_ray.errors import ConfigError, suggest_nearest

TYPE_WORDS = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    dict: "a section for each name",
}


def list_keys(section: Any = None, prefix: str = "") -> dict[str, tuple[str, Any, str]]:
    """Every dotted key with its type, default and description, for `eav keys` and for error messages."""
    section = Experiment() if section is None else section
    table: dict[str, tuple[str, Any, str]] = {}
    hints = get_type_hints(type(section))
    for field in fields(section):
        hint, value = hints[field.name], getattr(section, field.name)
        if is_dataclass(value):
            table |= list_keys(value, f"{prefix}{field.name}.")
        elif isinstance(value, dict) and value and all(map(is_dataclass, value.values())) and field.name != "space":
            for name, child in value.items():  # a section for each modality
                table |= list_keys(child, f"{prefix}{field.name}.{name}.")
        else:
            info = type(section).__pydantic_fields__[field.name]
            shown_type = _format_type(hint)
            meaning = info.description or ""
            if field.name == "kind" and (place := find_kind_place(prefix.removesuffix("."))):
                shown_type = format_choices(place.list_kinds())
                meaning = (type(section).__doc__ or "").strip().partition("\n")[0].removesuffix(".")
            if prefix + field.name == "data.dataset":
                shown_type = format_choices(list_dataset_names())
            table[prefix + field.name] = (shown_type, value, meaning)
    return table


def list_other_kinds() -> list[tuple[str, dict[str, tuple[str, Any, str]]]]:
    """The keys of sections that stand in the place of a default one: (`model.eeg.kind=bandpower`, its `keys`)."""
    return [
        (f"{place.key}.kind={kind}", list_keys(section(), f"{place.key}."))
        for place in KIND_PLACES.values()
        for kind, section in place.list_kinds().items()
        if kind != place.default
    ]


def list_feature_keys() -> dict[str, tuple[str, Any, str]]:
    """List the keys of a modality of given features, under NAME in place of its name."""
    table = list_keys(FeatureFile(), "data.features.NAME.")
    table |= list_keys(FeaturePreprocessing(width=1), "preprocessing.features.NAME.")
    for section in get_kind_place("model.NAME").list_kinds().values():
        table |= list_keys(section(), "model.NAME.")
    return table | list_keys(EncoderOptimConfig(), "train.encoders.NAME.")


def _format_type(hint: Any) -> str:
    """Say in words what a key takes."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return format_choices(inner)
    if origin in (Union, UnionType):
        return " or ".join(map(_format_type, inner))
    if origin is dict and not is_dataclass(inner[1]):
        return "names and their values"
    if origin is tuple:
        return f"list of {_format_type(inner[0])}"
    return TYPE_WORDS.get(origin or hint, "section")


def format_choices(values: Iterable[Any]) -> str:
    """List the values of which a key takes one, as they are written on a command line."""
    return " | ".join(map(format_value, values))


def format_value(value: Any) -> str:
    """Write a value as it stands in a YAML file or on a command line: `[eeg, audio]`, `true`, `''`."""
    if isinstance(value, dict):
        return "{...}" if value else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(format_value, value))}]"
    if isinstance(value, str):
        return value or "''"
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def list_key_names() -> list[str]:
    table = (
        list_keys() | {key: row for _, rows in list_other_kinds() for key, row in rows.items()} | list_feature_keys()
    )
    sections = {key.rsplit(".", 1)[0] for key in table if "." in key}
    return [*table, *sections]


def format_keys(prefix: str = "") -> str:
    """Format the keys that begin with a prefix, a line each, with default, type and meaning.

    Raises:
        ConfigError: No key begins with the prefix.
    """
    lines: list[str] = []
    groups = [("", list_keys()), *((f"With {kind} instead:", table) for kind, table in list_other_kinds())]
    groups.append(("For each NAME of features that others have computed:", list_feature_keys()))
    for title, table in groups:
        rows = {key: row for key, row in table.items() if key.startswith(prefix)}
        lines += [title] if title and rows else []
        for key, (kind, default, meaning) in rows.items():
            lines.append(f"  {key} = {format_value(default)}  ({kind})  {meaning}".rstrip())
    if not lines:
        nearest = suggest_nearest(prefix, list_key_names())
        raise ConfigError(f"no key begins with {prefix!r}{nearest}; `eav keys` without a prefix lists all")
    return "\n".join(
        ["Keys of an experiment, each may be given as key=value: the default, what it may be, what it means", *lines]
    )

"""List every key of an experiment, with its type, default and meaning."""

from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from eav_ray.config.data_sections import FeatureFile, FeaturePreprocessing
from eav_ray.config.kinds import list_dataset_names
from eav_ray.config.model_sections import KIND_PLACES, find_kind_place, get_kind_place
from eav_ray.config.sections import Experiment
from eav_ray.config.training_sections import EncoderOptimConfig
from eav_ray.errors import ConfigError, suggest_nearest


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
                shown_type = " | ".join(map(repr, place.list_kinds()))
                meaning = (type(section).__doc__ or "").strip().partition("\n")[0].removesuffix(".")
            if prefix + field.name == "data.dataset":
                shown_type = " | ".join(map(repr, list_dataset_names()))
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
    if get_origin(hint) is Literal:
        return " | ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(map(_format_type, get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


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
            shown = repr(default) if not isinstance(default, dict) else "{...}"
            lines.append(f"  {key} = {shown}  [{kind}]  {meaning}".rstrip())
    if not lines:
        nearest = suggest_nearest(prefix, list_key_names())
        raise ConfigError(f"no key begins with {prefix!r}{nearest}; `eav keys` without a prefix lists all")
    return "\n".join(["Keys of an experiment, each may be given as key=value (default, type, meaning):", *lines])

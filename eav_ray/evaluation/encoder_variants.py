"""The encoders that are compared: variants of an experiment, each with one modality alone. Runs without torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eav_ray.config import MODALITIES, EncoderConfig, Experiment, override
from eav_ray.config.loading import read_yaml
from eav_ray.config.model_sections import MODEL_PREFIX, get_kind_place
from eav_ray.errors import ConfigError, suggest_nearest

TRAINING_PREFIX = "train.encoders."
YAML_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class EncoderVariant:
    """One encoder of a comparison.

    Attributes:
        name: In tables.
        changes: Dotted keys under `model.<modality>` and `train.encoders.<modality>`.
    """

    name: str
    modality: str
    changes: dict[str, Any] = field(default_factory=dict)

    def apply_to(self, base: Experiment, seed: int) -> Experiment:
        """Make the experiment of this encoder alone.

        An encoder of the kind that the experiment has, and where that is one of many networks of the same network,
        starts from the experiment's section. Any other starts from the defaults of its kind.

        Raises:
            ConfigError: It cannot be made: a line a problem, with the name of the variant.
        """
        section, prefix = base.model[self.modality], f"{MODEL_PREFIX}{self.modality}"
        kind, network_key = self.changes.get(f"{prefix}.kind", section.kind), section.network_key
        is_own = kind == section.kind
        if is_own and network_key:
            network = getattr(section, network_key)
            is_own = self.changes.get(f"{prefix}.{network_key}", network) == network
        fresh = {} if is_own else {prefix: {"kind": kind}}
        changes = fresh | self.changes | {"data.modalities": [self.modality], "seed": seed}
        try:
            return override(base, changes)
        except ConfigError as error:
            raise ConfigError(self.describe_problems(error)) from None

    def describe_problems(self, error: Exception) -> str:
        """Describe why it cannot be compared, a line a problem."""
        lines = [line.removeprefix("override: ") for line in str(error).splitlines()]
        return "\n".join(self._describe_problem(line) for line in lines)

    def _describe_problem(self, reason: str) -> str:
        return f'the encoder "{self.name}" cannot be compared: {reason}'


def read_encoder_variants(text: str, base: Experiment) -> list[EncoderVariant]:
    """Read the encoders that a user names.

    Args:
        text: The path of a YAML file with a list of encoders, or short forms with commas: a kind (`bandpower`), a kind
            and its network (`braindecode:EEGNet`), either after a modality (`face:features`), or a modality alone,
            for the encoder that the experiment has.
        base: Its `data.modalities` can be named.

    Raises:
        ConfigError: An entry that is wrong, a line each.
    """
    path = Path(text).expanduser()
    if path.suffix in YAML_SUFFIXES:
        entries = read_yaml(path)
        if not isinstance(entries, list):
            raise ConfigError(f"{path} must hold a list of encoders, such as `- bandpower`; it holds {entries!r:.60}")
    else:
        entries = [word.strip() for word in text.split(",") if word.strip()]
    variants: list[EncoderVariant] = []
    problems: list[str] = []
    for entry in entries:
        try:
            variants.append(_read_short_form(entry, base) if isinstance(entry, str) else _read_section(entry, base))
        except ConfigError as error:
            problems.append(str(error))
    names = [v.name for v in variants]
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            problems.append(f'two encoders have the name "{name}"; give each of them a name of its own')
    if problems:
        raise ConfigError("\n".join(problems))
    if not variants:
        raise ConfigError("--encoders names no encoder; give kinds, such as eegformer,bandpower, or a YAML file")
    return variants


def _read_short_form(word: str, base: Experiment) -> EncoderVariant:
    known = (*MODALITIES, *base.preprocessing.features)
    first, _, rest = word.partition(":")
    modality = first if first in known else ""
    kind, _, network = (rest if modality else word).partition(":")
    if modality and not kind:
        return EncoderVariant(word, _check_modality(word, modality, base))
    modality = modality or _find_modality(kind, base)
    section = _find_section(kind, modality)
    if section is None:
        kinds = get_kind_place(f"{MODEL_PREFIX}{modality}").list_kinds()
        raise ConfigError(
            f"--encoders names {word}, but {modality} has no kind {kind}; use {', '.join(kinds)}"
            f"{suggest_nearest(kind, kinds)}"
        )
    prefix = f"{MODEL_PREFIX}{_check_modality(word, modality, base)}"
    changes = {f"{prefix}.kind": kind}
    if network:
        if not section.network_key:
            raise ConfigError(f"--encoders names {word}, but {kind} is one network; leave out :{network}")
        changes[f"{prefix}.{section.network_key}"] = network
    return EncoderVariant(word, modality, changes)


def _find_section(kind: str, modality: str) -> type[EncoderConfig] | None:
    return get_kind_place(f"{MODEL_PREFIX}{modality}").find_kind(kind)


def _find_modality(kind: str, base: Experiment) -> str:
    """Find the modality of which there is such a kind: of the experiment's, else of the recorded ones."""
    places = {m: get_kind_place(f"{MODEL_PREFIX}{m}").list_kinds() for m in (*base.data.modalities, *MODALITIES)}
    found = [m for m, kinds in places.items() if kind in kinds]
    own = [m for m in found if m in base.data.modalities]
    if len(own) > 1:
        raise ConfigError(f"--encoders names {kind}, which {' and '.join(own)} have; write {own[0]}:{kind}")
    if not found:
        kinds = sorted({kind for kinds in places.values() for kind in kinds})
        raise ConfigError(
            f"--encoders names {kind}, which is no kind of encoder; use any of {', '.join(kinds)}, or a YAML file"
            f"{suggest_nearest(kind, kinds)}"
        )
    return (own or found)[0]


def _check_modality(name: str, modality: str, base: Experiment) -> str:
    if modality not in base.data.modalities:
        raise ConfigError(
            f"--encoders names {name}, which reads {modality}, but data.modalities is "
            f"[{', '.join(base.data.modalities)}]; take {modality} in, or leave {name} out"
        )
    return modality


def _read_section(entry: Any, base: Experiment) -> EncoderVariant:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ConfigError(
            f"an encoder is {entry!r:.60}; give a kind, or a section such as "
            "{name: EEGNet, model.eeg: {kind: braindecode, name: EEGNet}}"
        )
    name = entry["name"]
    changes = _flatten({key: value for key, value in entry.items() if key != "name"})
    modalities = []
    for key in changes:
        prefix = next((p for p in (MODEL_PREFIX, TRAINING_PREFIX) if key.startswith(p)), "")
        if not prefix:
            raise ConfigError(
                f'the encoder "{name}" changes {key}; only keys under model and train.encoders differ between encoders'
            )
        modalities.append(key.removeprefix(prefix).partition(".")[0])
    known = (*MODALITIES, *base.preprocessing.features)
    unknown = [m for m in modalities if m not in known]
    if unknown or len(set(modalities)) != 1:
        shown = ", ".join(dict.fromkeys(modalities)) or "none"
        raise ConfigError(
            f'the encoder "{name}" has keys of {shown}; give it keys of one modality of '
            f"{', '.join(base.data.modalities)}"
        )
    return EncoderVariant(name, _check_modality(name, modalities[0], base), changes)


def _flatten(tree: dict[Any, Any], place: str = "") -> dict[str, Any]:
    """Turn sections into dotted keys, down to the keys of an encoder or its training, which may be sections too."""
    changes: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{place}{key}"
        depth = 2 if path.startswith(MODEL_PREFIX) else 3
        if isinstance(value, dict) and value and path.count(".") < depth:
            changes |= _flatten(value, f"{path}.")
        else:
            changes[path] = value
    return changes


def choose_references(variants: Sequence[EncoderVariant], named: Sequence[str]) -> dict[str, str]:
    """Choose what the encoders of each modality are compared with: one that is named, else the first.

    Raises:
        ConfigError: A name that no encoder has, or two of one modality.
    """
    by_name = {v.name: v.modality for v in variants}
    references: dict[str, str] = {}
    for name in named:
        if name not in by_name:
            raise ConfigError(f"--reference is {name}; use one of {', '.join(by_name)}{suggest_nearest(name, by_name)}")
        if by_name[name] in references:
            raise ConfigError(f"--reference names two encoders of {by_name[name]}; name one of each modality")
        references[by_name[name]] = name
    for name, modality in by_name.items():
        references.setdefault(modality, name)
    return references

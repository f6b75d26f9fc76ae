"""What an ablation changes: variants of an experiment, each with what it is compared with. Runs without torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, get_args, get_type_hints

from eav_ray.config import Experiment, FusionConfig, get_token_width, override
from eav_ray.errors import ConfigError

PARTS = ("subsets", "kinds", "dropout", "positions", "sizes")
SIZES = {"quarter": 0.25, "half": 0.5, "double": 2.0}  # of widths and depths
CHEAP = "cheap"  # features that are computed instead of learned, where a modality has some
CHEAP_KINDS = {"model.eeg": "bandpower", "model.audio": "mfcc"}
BASE = "as given"
HIDDEN = "others hidden"
KINDS: tuple[str, ...] = get_args(get_type_hints(FusionConfig)["kind"])
SAID: dict[str, str] = {"single_token": "single_token, a linear map"}  # a softmax over one key is 1


@dataclass(frozen=True)
class Variant:
    """One change of an experiment.

    Attributes:
        group: The part of the ablation; it is compared, and Holm's correction is made, within that.
        changes: Dotted keys, as `override` takes them.
        shown: Modalities that the test lets it see; all, where none are named. Then nothing is trained for it.
        against: Name of what it is compared with.
        size: Of its encoders and fusion.
    """

    name: str
    group: str
    changes: dict[str, Any] = field(default_factory=dict)
    shown: tuple[str, ...] = ()
    against: str = BASE
    size: str = BASE

    @property
    def how(self) -> str:
        return "masked" if self.shown else "retrained"

    def experiment(self, base: Experiment) -> Experiment:
        return override(base, self.changes) if self.changes else base

    def modalities(self, base: Experiment) -> list[str]:
        """What it sees when it is tested."""
        return sorted(self.shown or self.changes.get("data.modalities", base.data.modalities))


def variants(base: Experiment, parts: Sequence[str], sizes: Sequence[str]) -> tuple[list[Variant], list[str]]:
    """All variants of some parts, the experiment itself first, and a line for each part that has none, with the reason.

    Raises:
        ConfigError: An unknown part or size, one modality alone, or a change that the experiment does not allow.
    """
    _check("--parts", parts, PARTS)
    _check("--sizes", sizes, (CHEAP, *SIZES))
    if len(base.data.modalities) < 2 and set(parts) != {"sizes"}:
        raise ConfigError(
            f"data.modalities is [{', '.join(base.data.modalities)}]; an ablation wants two modalities or more, of one "
            "alone there are --parts sizes only"
        )
    made = {
        "subsets": lambda: _subsets(base),
        "kinds": lambda: _kinds(base),
        "dropout": lambda: _dropout(base, masked="subsets" in parts),
        "positions": lambda: _positions(base),
        "sizes": lambda: _sizes(base, tuple(dict.fromkeys(sizes))),
    }
    found, left_out = [Variant(BASE, "")], []
    for part in PARTS:
        if part in parts:
            some = made[part]()
            found += some if isinstance(some, list) else []
            left_out += [f"{part} left out: {some}"] if isinstance(some, str) else []
    for variant in found:
        try:
            variant.experiment(base)
        except ConfigError as error:
            raise ConfigError(f'the variant "{variant.name}" cannot be made: {error}') from None
    return found, left_out


def _check(flag: str, given: Sequence[str], allowed: Sequence[str]) -> None:
    for word in given:
        if word not in allowed:
            raise ConfigError(f"{flag} names {word!r}; use any of {','.join(allowed)}")


def subset_name(modalities: Sequence[str]) -> str:
    return " + ".join(sorted(modalities))


def hidden_name(modalities: Sequence[str]) -> str:
    return f"{subset_name(modalities)} ({HIDDEN})"


def subsets(base: Experiment) -> list[tuple[str, ...]]:
    """All but the whole, the smallest first."""
    names = sorted(base.data.modalities)
    return [some for n in range(1, len(names)) for some in combinations(names, n)]


def _subsets(base: Experiment) -> list[Variant]:
    retrained = [
        Variant(subset_name(some), "subsets", _with_heads(base, {"data.modalities": list(some)}))
        for some in subsets(base)
    ]
    return retrained + [Variant(hidden_name(some), "subsets", shown=some) for some in subsets(base)]


def _kinds(base: Experiment) -> list[Variant]:
    others = [kind for kind in KINDS if kind != base.fusion.kind]
    return [Variant(SAID.get(k, k), "kinds", _with_heads(base, {"fusion.kind": k})) for k in others]


def _dropout(base: Experiment, *, masked: bool) -> list[Variant] | str:
    """
    Args:
        masked: Whether it is also tested with modalities hidden, against the experiment of which the same are: what
            modality dropout is for.
    """
    if base.fusion.kind == "late_mean":
        return "fusion.kind=late_mean has nothing to train"
    rate = 0.0 if base.fusion.modality_dropout else FusionConfig().modality_dropout
    name = f"modality dropout {rate:g}" if rate else "no modality dropout"
    changes = {"fusion.modality_dropout": rate}
    hidden = [
        Variant(f"{name}, {hidden_name(some)}", "dropout", changes, some, hidden_name(some)) for some in subsets(base)
    ]
    return [Variant(name, "dropout", changes), *(hidden if masked else [])]


def _positions(base: Experiment) -> list[Variant] | str:
    if base.fusion.kind not in ("shared_attention", "bottleneck") or base.fusion.uses_pooled_features:
        read = f"fusion.kind={base.fusion.kind}" if base.fusion.kind != "shared_attention" else "fusion.input=pooled"
        return f"{read} reads no time tokens"
    name = "no time marks" if base.fusion.positions else "time marks"
    return [Variant(name, "positions", {"fusion.positions": not base.fusion.positions})]


def _sizes(base: Experiment, sizes: Sequence[str]) -> list[Variant] | str:
    """Each size, and the same without EEG, so that what EEG adds can be told at each."""
    for m in base.data.modalities:
        if getattr(base.train.encoders, m).encoder_lr == 0:
            return f"train.encoders.{m}.encoder_lr=0 keeps published weights, which other sizes do not have"
    found = []
    for size in (BASE, *sizes):
        changes = {} if size == BASE else _cheap(base) if size == CHEAP else _scaled(base, SIZES[size])
        if size != BASE:
            found.append(Variant(size, "sizes", _with_heads(base, changes), size=size))
        rest = sorted(set(base.data.modalities) - {"eeg"})
        if rest and "eeg" in base.data.modalities:
            less = _with_heads(base, changes | {"data.modalities": rest})
            found.append(Variant(f"{size} without eeg", "sizes", less, size=size))
    return found


def _scaled(base: Experiment, factor: float) -> dict[str, Any]:
    """Widths, and depths, times a factor, as near as what divides them allows; published weights do not fit and go."""
    changes: dict[str, Any] = {}
    for m in sorted(base.data.modalities):
        section, section_path = getattr(base.model, m), f"model.{m}"
        for key in ("width", "temporal_width"):
            if hasattr(section, key):
                unit = getattr(section, "heads", 1)
                if section.kind == "eegformer" and key == "width":
                    unit = math.lcm(unit, section.segments)
                changes[f"{section_path}.{key}"] = _multiple(getattr(section, key) * factor, unit)
        if section.kind == "eegformer":
            changes[f"{section_path}.filters"] = max(1, round(section.filters * factor))
        if hasattr(section, "depth"):
            changes[f"{section_path}.depth"] = max(1, round(section.depth * factor))
        if getattr(section, "weights", ""):
            changes[f"{section_path}.weights"] = ""
    if len(base.data.modalities) > 1:
        changes["fusion.width"] = _multiple(base.fusion.width * factor, base.fusion.heads)
    return changes


def _cheap(base: Experiment) -> dict[str, Any]:
    """Band power and MFCC for EEG and audio; video, for which there is no such thing, at a quarter of its size."""
    scaled = _scaled(base, SIZES["quarter"])
    changes: dict[str, Any] = {k: v for k, v in scaled.items() if k.startswith("model.video.")}
    for section_path, kind in CHEAP_KINDS.items():
        m = section_path.removeprefix("model.")
        if m in base.data.modalities and getattr(base.model, m).kind != kind:
            changes[f"{section_path}.kind"] = kind
    return changes


def _multiple(value: float, unit: int) -> int:
    return unit * max(1, round(value / unit))


def _with_heads(base: Experiment, changes: dict[str, Any]) -> dict[str, Any]:
    """With as many heads of fusion, at most those that the experiment has, as its kind allows.

    `single_token` attends over the widths of all encoders together, whichever they are; over its one token the number
    of heads changes nothing.
    """
    if changes.get("fusion.kind", base.fusion.kind) != "single_token":
        return changes
    rest = {k: v for k, v in changes.items() if k not in ("fusion.kind", "data.modalities")}
    model = override(base, rest | {"fusion.kind": "late_mean"}).model
    total = sum(get_token_width(getattr(model, m)) for m in changes.get("data.modalities", base.data.modalities))
    heads = next(h for h in range(base.fusion.heads, 0, -1) if total % h == 0)
    return changes if heads == base.fusion.heads else changes | {"fusion.heads": heads}

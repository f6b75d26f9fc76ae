"""What an ablation changes: variants of an experiment, each with what it is compared with. Runs without torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from eav_ray.config import EncoderConfig, Experiment, FusionConfig, override, select_worn_modalities
from eav_ray.config.model_sections import KIND_PLACES, get_kind_place
from eav_ray.errors import ConfigError

ABLATION_PARTS = ("subsets", "kinds", "dropout", "positions", "sizes")
SIZE_FACTORS = {"quarter": 0.25, "half": 0.5, "double": 2.0}  # of widths and depths
HANDCRAFTED = "handcrafted"  # features that are computed instead of learned, where a modality has some
BASE_VARIANT = "unchanged"
OTHERS_MASKED = "others masked"
FUSION_KIND_TITLES: dict[str, str] = {"single_token": "single_token, a linear map"}  # a softmax over one key is 1


@dataclass(frozen=True)
class AblationVariant:
    """One change of an experiment.

    Attributes:
        group: The part of the ablation; it is compared, and Holm's correction is made, within that.
        changes: Dotted keys, as `override` takes them.
        visible_modalities: Modalities that the test lets it see; all, where none are named. Then nothing is trained for
            it.
        reference: Name of what it is compared with.
        size: Of its encoders and fusion.
    """

    name: str
    group: str
    changes: dict[str, Any] = field(default_factory=dict)
    visible_modalities: tuple[str, ...] = ()
    reference: str = BASE_VARIANT
    size: str = BASE_VARIANT

    @property
    def mode(self) -> str:
        return "masked" if self.visible_modalities else "retrained"

    def apply_to(self, base: Experiment) -> Experiment:
        return override(base, self.changes) if self.changes else base

    def list_tested_modalities(self, base: Experiment) -> list[str]:
        """What it sees when it is tested."""
        return sorted(self.visible_modalities or self.changes.get("data.modalities", base.data.modalities))


def build_ablation_variants(
    base: Experiment, parts: Sequence[str], sizes: Sequence[str]
) -> tuple[list[AblationVariant], list[str]]:
    """All variants of some parts, the experiment itself first, and a line for each part that has none, with the reason.

    Raises:
        ConfigError: An unknown part or size, one modality alone, or a change that the experiment does not allow.
    """
    _check_allowed("--parts", parts, ABLATION_PARTS)
    _check_allowed("--sizes", sizes, (HANDCRAFTED, *SIZE_FACTORS))
    if len(base.data.modalities) < 2 and set(parts) != {"sizes"}:
        raise ConfigError(
            f"data.modalities is [{', '.join(base.data.modalities)}]; an ablation wants two modalities or more, of one "
            "alone there are --parts sizes only"
        )
    builders = {
        "subsets": lambda: _build_subset_variants(base),
        "kinds": lambda: _build_fusion_variants(base),
        "dropout": lambda: _build_dropout_variants(base, masked="subsets" in parts),
        "positions": lambda: _build_position_variants(base),
        "sizes": lambda: _build_size_variants(base, tuple(dict.fromkeys(sizes))),
    }
    built, skipped_parts = [AblationVariant(BASE_VARIANT, "")], []
    for part in ABLATION_PARTS:
        if part in parts:
            outcome = builders[part]()
            built += outcome if isinstance(outcome, list) else []
            skipped_parts += [f"{part} left out: {outcome}"] if isinstance(outcome, str) else []
    for variant in built:
        try:
            variant.apply_to(base)
        except ConfigError as error:
            raise ConfigError(f'the variant "{variant.name}" cannot be made: {error}') from None
    return built, skipped_parts


def _check_allowed(flag: str, given: Sequence[str], allowed: Sequence[str]) -> None:
    for word in given:
        if word not in allowed:
            raise ConfigError(f"{flag} names {word!r}; use any of {','.join(allowed)}")


def format_subset_name(modalities: Sequence[str]) -> str:
    return " + ".join(sorted(modalities))


def format_masked_name(modalities: Sequence[str]) -> str:
    return f"{format_subset_name(modalities)} ({OTHERS_MASKED})"


def list_modality_subsets(base: Experiment) -> list[tuple[str, ...]]:
    """All but the whole, the smallest first."""
    names = sorted(base.data.modalities)
    return [some for n in range(1, len(names)) for some in combinations(names, n)]


def _build_subset_variants(base: Experiment) -> list[AblationVariant]:
    retrained = [
        AblationVariant(format_subset_name(some), "subsets", _adjust_fusion(base, {"data.modalities": list(some)}))
        for some in list_modality_subsets(base)
    ]
    return retrained + [
        AblationVariant(format_masked_name(some), "subsets", visible_modalities=some)
        for some in list_modality_subsets(base)
    ]


def _build_fusion_variants(base: Experiment) -> list[AblationVariant]:
    others = [
        kind
        for kind, section in KIND_PLACES["fusion"].list_kinds().items()
        if kind != base.fusion.kind and section.can_predict(numbers=base.data.predicts_numbers)
    ]
    return [
        AblationVariant(FUSION_KIND_TITLES.get(k, k), "kinds", _adjust_fusion(base, {"fusion.kind": k})) for k in others
    ]


def _build_dropout_variants(base: Experiment, *, masked: bool) -> list[AblationVariant] | str:
    """
    Args:
        masked: Whether it is also tested with modalities hidden, against the experiment of which the same are: what
            modality dropout is for.
    """
    if not base.fusion.has_parameters:
        return f"fusion.kind={base.fusion.kind} has nothing to train"
    rate = 0.0 if base.fusion.modality_dropout else FusionConfig().modality_dropout
    name = f"modality dropout {rate:g}" if rate else "no modality dropout"
    changes = {"fusion.modality_dropout": rate}
    masked_variants = [
        AblationVariant(f"{name}, {format_masked_name(some)}", "dropout", changes, some, format_masked_name(some))
        for some in list_modality_subsets(base)
    ]
    return [AblationVariant(name, "dropout", changes), *(masked_variants if masked else [])]


def _build_position_variants(base: Experiment) -> list[AblationVariant] | str:
    positions = getattr(base.fusion, "positions", None)
    if positions is None or not base.fusion.reads_time:
        setting = f"fusion.kind={base.fusion.kind}" if positions is None else "fusion.input=pooled"
        return f"{setting} reads no time tokens"
    name = "no time encodings" if positions else "time encodings"
    return [AblationVariant(name, "positions", {"fusion.positions": not positions})]


def _build_size_variants(base: Experiment, sizes: Sequence[str]) -> list[AblationVariant] | str:
    """Each size, and the same without each worn sensor, so that what that adds is known at each."""
    for m in base.data.modalities:
        if base.train.encoders[m].encoder_lr_scale == 0:
            return f"train.encoders.{m}.encoder_lr_scale=0 keeps published weights, which other sizes do not have"
        if not base.model[m].scales:
            return f"model.{m}.kind={base.model[m].kind} is a network of one size"
    changes_by_size = {size: _scale_sizes(base, factor) for size, factor in SIZE_FACTORS.items()}
    changes_by_size |= {BASE_VARIANT: {}, HANDCRAFTED: _use_handcrafted_features(base)}
    built = []
    for size in (BASE_VARIANT, *sizes):
        changes = changes_by_size[size]
        if size != BASE_VARIANT:
            built.append(AblationVariant(size, "sizes", _adjust_fusion(base, changes), size=size))
        for m in select_worn_modalities(base.data.modalities):
            if rest := sorted(set(base.data.modalities) - {m}):
                changes_without = _adjust_fusion(base, changes | {"data.modalities": rest})
                built.append(AblationVariant(f"{size} without {m}", "sizes", changes_without, size=size))
    return built


def _scale_sizes(base: Experiment, factor: float) -> dict[str, Any]:
    """Widths, and depths, times a factor, as near as what divides them allows; published weights do not fit and go."""
    changes: dict[str, Any] = {}
    for m in sorted(base.data.modalities):
        section: EncoderConfig = base.model[m]
        changes |= {f"model.{m}.{key}": value for key, value in section.scale_sizes(factor).items()}
        if getattr(section, "weights", ""):
            changes[f"model.{m}.weights"] = ""
    if len(base.data.modalities) > 1:
        changes |= {f"fusion.{key}": value for key, value in base.fusion.scale_sizes(factor).items()}
    return changes


def _use_handcrafted_features(base: Experiment) -> dict[str, Any]:
    """Computed features where a modality has an encoder that starts from some, a quarter of the size where not."""
    scaled = _scale_sizes(base, SIZE_FACTORS["quarter"])
    changes: dict[str, Any] = {}
    for m in sorted(base.data.modalities):
        kinds = get_kind_place(f"model.{m}").list_kinds()
        handcrafted = next((kind for kind, section in kinds.items() if section.is_handcrafted), "")
        if not handcrafted:
            changes |= {key: value for key, value in scaled.items() if key.startswith(f"model.{m}.")}
        elif not base.model[m].is_handcrafted:
            changes[f"model.{m}.kind"] = handcrafted
    return changes


def _adjust_fusion(base: Experiment, changes: dict[str, Any]) -> dict[str, Any]:
    """Add to some changes what the fusion needs to fit the encoders that are then there."""
    modalities = list(changes.get("data.modalities", base.data.modalities))
    try:
        # With one modality, nothing is asked of encoders and fusion together.
        changed = override(base, changes | {"data.modalities": modalities[:1]})
    except ConfigError:
        return changes  # making the variant says why
    fitted = changed.fusion.fit_to_widths([changed.model[m].token_width for m in modalities])
    return changes | {f"fusion.{key}": value for key, value in fitted.items()}

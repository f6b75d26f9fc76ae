"""Where the sections of encoders and fusions stand in an experiment, and which kinds may stand there."""

import dataclasses
import functools
from typing import Annotated, Any

from pydantic import PlainValidator, TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from eav_ray.config.encoders.base import EncoderConfig
from eav_ray.config.fusion.base import FusionConfig
from eav_ray.config.fusion.shared_attention import SharedAttentionConfig
from eav_ray.config.kinds import import_installed_plugins, import_modules, index_kinds, list_subclasses


@dataclasses.dataclass(frozen=True)
class KindPlace:
    """A key of an experiment whose section is one of several kinds, told apart by `kind`.

    Args:
        key: Where the section stands, as `model.eeg`.
        base: What the sections of all kinds are classes of.
        package: Where the package's own kinds are.
        default: The kind that stands there where none is named.
        modality: Of encoders, which modality they take.
        keeps_shared_keys: Whether another kind keeps the values of keys that it has too. Keys of encoders mean
            something else in each, those of fusions the same in all.
    """

    key: str
    base: type[Any]
    package: str
    default: str
    modality: str = ""
    keeps_shared_keys: bool = False

    def list_kinds(self) -> dict[str, type[Any]]:
        """Map the name of each kind to its section, in alphabetical order."""
        import_installed_plugins()
        return self._list_imported_kinds()

    def _list_imported_kinds(self) -> dict[str, type[Any]]:
        import_modules(self.package)
        classes = list_subclasses(self.base)
        return index_kinds([c for c in classes if getattr(c, "modality", "") == self.modality], "kind")

    def find_kind(self, kind: Any) -> type[Any] | None:
        """Find the section of a kind; None where there is no such kind."""
        if not isinstance(kind, str):
            return None
        # Looking through the installed packages takes a tenth of a second, which most processes need not wait for.
        return self._list_imported_kinds().get(kind) or self.list_kinds().get(kind)

    def switch_kind(self, section: dict[str, Any], kind: Any) -> dict[str, Any]:
        """Make the tree of a section that of another kind, which starts from its own defaults.

        Args:
            section: A tree; without `kind` it is of the default kind.
            kind: Another one, or the same, which changes nothing.
        """
        if kind == section.get("kind", self.default):
            return dict(section)
        found = self.find_kind(kind)
        shared = {f.name for f in dataclasses.fields(found)} if found and self.keeps_shared_keys else set()
        return {key: value for key, value in section.items() if key in shared} | {"kind": kind}

    def validate(self, value: Any) -> Any:
        """Turn a tree into the section of the kind that it names, the default one where it names none."""
        if isinstance(value, self.base) and getattr(value, "modality", "") == self.modality:
            return value
        if not isinstance(value, dict):
            raise PydanticCustomError("not_a_section", "give a section with a kind")
        kind = value.get("kind", self.default)
        section = self.find_kind(kind)
        if section is None:
            raise PydanticCustomError("unknown_kind", "no such kind", {"kind": kind})
        return _get_adapter(section).validate_python(value)


@functools.cache
def _get_adapter(section: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(section)


KIND_PLACES = {
    place.key: place
    for place in (
        KindPlace("model.audio", EncoderConfig, "eav_ray.config.encoders", "ast", "audio"),
        KindPlace("model.eeg", EncoderConfig, "eav_ray.config.encoders", "eegformer", "eeg"),
        KindPlace("model.video", EncoderConfig, "eav_ray.config.encoders", "vit", "video"),
        KindPlace("fusion", FusionConfig, "eav_ray.config.fusion", "shared_attention", keeps_shared_keys=True),
    )
}


MODEL_PREFIX = "model."


def find_kind_place(key: str) -> KindPlace | None:
    """Find the place of kinds at a key; that of given features is at `model.<name>` of any other name."""
    if key in KIND_PLACES:
        return KIND_PLACES[key]
    name = key.removeprefix(MODEL_PREFIX)
    is_model = key.startswith(MODEL_PREFIX) and bool(name) and "." not in name
    return KindPlace(key, EncoderConfig, "eav_ray.config.encoders", "features") if is_model else None


def get_kind_place(key: str) -> KindPlace:
    """Return the place of kinds at a key where there is one."""
    place = find_kind_place(key)
    assert place is not None, key
    return place


def validate_models(value: Any) -> dict[str, EncoderConfig]:
    """Turn a tree into the section of each modality's encoder; those that it leaves out are the default ones."""
    if not isinstance(value, dict):
        raise PydanticCustomError("not_sections", "give a section for each modality")
    found: dict[str, EncoderConfig] = {}
    errors: list[InitErrorDetails] = []
    for name, section in (dict.fromkeys(DEFAULT_ENCODERS, {}) | value).items():
        try:
            found[name] = get_kind_place(f"{MODEL_PREFIX}{name}").validate(section)
        except PydanticCustomError as error:
            errors.append(InitErrorDetails(type=error, loc=(name,), input=section))
        except ValidationError as error:
            errors += [
                InitErrorDetails(type=e["type"], loc=(name, *e["loc"]), input=e["input"], ctx=e.get("ctx", {}))
                for e in error.errors()
            ]
    if errors:
        raise ValidationError.from_exception_data("model", errors)
    return found


DEFAULT_ENCODERS = tuple(place.modality for place in KIND_PLACES.values() if place.modality)
ModelSections = Annotated[dict[str, EncoderConfig], PlainValidator(validate_models)]
AnyFusionConfig = Annotated[FusionConfig, PlainValidator(KIND_PLACES["fusion"].validate)]
DEFAULT_FUSION = SharedAttentionConfig()

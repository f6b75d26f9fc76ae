"""Configure any image network of timm, on single frames."""

from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT, Preprocessing, define
from eav_ray.config.encoders.base import WEIGHTS_HELP, EncoderConfig, find_frame_problems
from eav_ray.config.modalities import ModalityName


@dataclass(frozen=True, config=STRICT)
class BackboneConfig(EncoderConfig):
    """Any image network of timm with pooled features: EfficientNet, ConvNeXt, MobileNet, ViT, Swin and the like.

    With `weights`, name, mean and SD are those of the folder's config.json. Frames must have been stored in a size that
    the network takes. `subject_normalisation` is of red, green and blue.
    """

    modality: ClassVar[ModalityName] = "video"
    normalises_subjects: ClassVar[bool] = True
    scales: ClassVar[bool] = False
    network_key: ClassVar[str] = "name"
    kind: Literal["backbone"] = "backbone"
    name: str = define("convnext_atto", "any network of timm that pools its features")
    weights: str = define("", f"{WEIGHTS_HELP}, of the same network of timm, or one such file")
    width: int = define(0, "of the pooled features; 0: what the network makes. Another than that is refused", ge=0)
    mean: tuple[float, ...] = define((), "of red, green and blue in [0, 1]; empty: what timm has for the name")
    sd: tuple[float, ...] = define((), "of red, green and blue; empty: what timm has for the name")
    frames: int = define(25, "frames per window that are used, evenly spaced", gt=0)
    dropout: float = define(0.0, "of the pooled features", ge=0, lt=1)

    @model_validator(mode="after")
    def _check_colours(self) -> Self:
        for key, values in (("mean", self.mean), ("sd", self.sd)):
            if len(values) not in (0, 3) or (key == "sd" and any(value <= 0 for value in values)):
                raise ValueError(f"{key} is {list(values)}; give one number each for red, green and blue")
        return self

    def find_problems(self, preprocessing: Preprocessing) -> list[str]:
        return find_frame_problems(self.frames, preprocessing)

    def adopt_settings(self, published: dict[str, Any], where: str) -> dict[str, Any]:
        found: dict[str, Any] = {
            key: published.get(name) for key, name in (("name", "architecture"), ("mean", "mean"), ("sd", "std"))
        }
        if isinstance(found["name"], str) and found["name"].partition(".")[0] == self.name.partition(".")[0]:
            found.pop("name")  # the experiment may name the weights' tag as well
        return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items() if value}

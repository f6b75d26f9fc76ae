"""What all sections of encoders share."""

from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT, Preprocessing, define
from eav_ray.config.modalities import ModalityName

INPUT_DROPOUT_HELP = "chance that training hides a feature of a window: less is learned by heart of few people"
WEIGHTS_HELP = (
    "published weights to start from: a folder as a hub has them (safetensors), or the name under which it was fetched "
    "(`eav weights fetch`)"
)


@dataclass(frozen=True, config=STRICT)
class EncoderConfig:
    """Describe one kind of encoder: a frozen dataclass with `kind: Literal["..."]` and the keys of its network.

    The network is built by `build(section, preprocessing, shapes)` of the module of the same name in
    `eav_ray.models.encoders`, or, for a kind from outside the package, of the section's own module.

    Attributes:
        modality: Which of the recorded modalities it encodes; empty: given features.
        revision: Raise it when what the encoder computes changes, so that what was trained before is not reused.
        is_handcrafted: Whether it starts from computed features instead of learning them.
        scales: Whether it can be made wider and deeper (`scale_sizes`).
        normalises_subjects: Whether it has features that can be normalised within subjects
            (`Encoder.compute_features`).
        network_key: Of a kind of many networks, the key that says which.
    """

    kind: str = ""
    width: int = define(64, "width of the tokens", gt=0)
    subject_normalisation: Literal["none", "standardise"] = define(
        "none",
        "bring what the encoder computes of a window to mean 0 and SD 1 within each subject, over the recordings that "
        "split.access allows",
    )
    modality: ClassVar[ModalityName] = ""
    revision: ClassVar[int] = 1
    is_handcrafted: ClassVar[bool] = False
    scales: ClassVar[bool] = True
    normalises_subjects: ClassVar[bool] = False
    network_key: ClassVar[str] = ""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        check_heads(getattr(self, "heads", 1), self.width, self.token_width)
        return self

    @property
    def token_width(self) -> int:
        """Width of the tokens that the encoder makes."""
        return self.width

    @property
    def reads_training_rows(self) -> bool:
        """Whether what the encoder reads of a window depends on other recordings, as standardised channels do."""
        return self.modality in ("", "eeg") or self.subject_normalisation != "none"

    @property
    def augments(self) -> bool:
        """Whether the encoder makes other features of a window in each epoch of a training."""
        return False

    def find_problems(self, preprocessing: Preprocessing) -> list[str]:
        """List what does not fit the stored windows, a line each."""
        return []

    @property
    def non_commercial_licence(self) -> str:
        """The licence of the network's code where it forbids commercial use; empty for all others."""
        return ""

    def adopt_settings(self, published: dict[str, Any], where: str) -> dict[str, Any]:
        """Return the keys that what lies beside the published weights decides, with their values.

        Args:
            published: What config.json and preprocessor_config.json say.
            where: The key and its weights, for errors.
        Raises:
            ConfigError: The weights are of another kind.
        """
        return {}

    def scale_sizes(self, factor: float) -> dict[str, Any]:
        """Scale the keys that make the encoder wider and deeper, as near to a factor as what divides them allows."""
        sizes = {"width": round_to_multiple(self.width * factor, getattr(self, "heads", 1))}
        if depth := getattr(self, "depth", 0):
            sizes["depth"] = max(1, round(depth * factor))
        return sizes


@dataclass(frozen=True, config=STRICT)
class AudioEncoderConfig(EncoderConfig):
    """Share the keys of every kind of audio encoder; no kind of its own."""

    modality: ClassVar[ModalityName] = "audio"
    silence_db: float = define(
        30.0,
        "the ends of a window that are quieter than its loudest part by so many dB are silence: not in statistics, "
        "and masked in tokens. 0: only digital zeros that fill a window up",
        ge=0,
    )


def find_frame_problems(frames: int, preprocessing: Preprocessing) -> list[str]:
    """List what does not fit where an encoder uses so many frames of a window."""
    stored_frames = preprocessing.video.fps * preprocessing.window_s
    problems: list[str] = []
    if frames > stored_frames:
        problems.append(
            f"model.video.frames is {frames}, but a stored window has {stored_frames}; "
            f"set model.video.frames to at most {stored_frames}"
        )
    return problems


def round_to_multiple(value: float, unit: int) -> int:
    """Round to a multiple of a unit, at least one."""
    return unit * max(1, round(value / unit))


def check_heads(heads: int, *widths: int) -> None:
    """Raise ValueError where a number of attention heads does not divide all widths."""
    if any(width % heads for width in widths):
        allowed = [h for h in range(1, 65) if not any(width % h for width in widths)]
        shown = " and ".join(map(str, dict.fromkeys(widths)))
        raise ValueError(f"heads is {heads}, which does not divide width {shown}; use one of {allowed}")

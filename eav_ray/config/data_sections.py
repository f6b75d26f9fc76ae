"""Sections of an experiment on data: recordings, preprocessing, splits."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from eav_ray.config.kinds import check_dataset_name, find_dataset_module, import_plugins
from eav_ray.config.modalities import MODALITIES, ModalityName
from eav_ray.errors import ConfigError

Protocol = Literal["paper", "within", "within_validated", "subject_kfold", "loso"]


STRICT = ConfigDict(extra="forbid")


def _check_dataset(name: str) -> str:
    try:
        check_dataset_name(name)
    except ConfigError as error:
        raise PydanticCustomError("unknown_dataset", "{reason}", {"reason": str(error)}) from None
    return name


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    dataset: Annotated[str, AfterValidator(_check_dataset)] = Field(
        default="eav", description="which reader opens `data.root`"
    )
    root: str = Field(
        default="", description="folder of the data set, or the CSV/Parquet file of `data.dataset=recordings_table`"
    )
    modalities: tuple[ModalityName, ...] = Field(default=MODALITIES, description="any subset of audio, eeg, video")
    tasks: tuple[Literal["speaking", "listening"], ...] = Field(
        default=("speaking",), description="EAV: which recordings; listening rows are only ever trained on"
    )
    subjects: tuple[str, ...] = Field(default=(), description="only these people, by the reader's ids; empty means all")
    labels: Literal["true", "permuted"] = Field(
        default="true", description="permuted: labels shuffled within each person, a control that must score at chance"
    )

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"reader_module": find_dataset_module(self.dataset)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Import the module of the reader in every process that receives the section, so that it knows it too."""
        state = dict(state)
        import_plugins([name for name in [state.pop("reader_module")] if name])
        self.__dict__.update(state)

    @model_validator(mode="after")
    def _check_modalities(self) -> "DataConfig":
        if not self.modalities or len(set(self.modalities)) != len(self.modalities):
            raise ValueError("data.modalities must name at least one modality, each once")
        return self


@dataclass(frozen=True, config=STRICT)
class EEGPreprocessing:
    kind: Literal["clean", "official"] = Field(
        default="clean", description="our cleaning, or the steps of EAV's authors: causal, over the concatenation"
    )
    hz: int = Field(default=100, gt=0, description="sampling rate of the stored windows, Hz")
    low_hz: float = Field(default=0.5, gt=0, description="lower edge of the pass band, Hz")
    high_hz: float = Field(default=45.0, gt=0, description="upper edge of the pass band, Hz")
    notch_hz: float = Field(default=50.0, ge=0, description="mains frequency, notched before decimation; 0 for none")
    reference: Literal["average", "none"] = Field(default="average", description="average reference, or as recorded")
    unit: Literal["auto", "microvolt", "volt"] = Field(default="auto", description="unit of the raw numbers")
    bad_channel_correlation: float = Field(
        default=0.4,
        ge=0,
        lt=1,
        description="a channel that correlates less than this with every other is bad; 0 to not look",
    )
    artefacts: Literal["none", "blinks", "all"] = Field(
        default="none",
        description="take out independent components that ICLabel calls eye blinks, or all that it calls artefacts",
    )
    align: Literal["none", "standardise", "euclidean"] = Field(
        default="none",
        description="bring each person's EEG to common terms, by all of their recordings and no label: each channel to "
        "SD 1, or their mean covariance to the identity",
    )

    @model_validator(mode="after")
    def _check_band(self) -> "EEGPreprocessing":
        if not self.low_hz < self.high_hz < self.hz / 2:
            raise ValueError(f"needs low_hz < high_hz < hz / 2 = {self.hz / 2:g}")
        if self.kind == "official" and (self.hz, self.low_hz, self.high_hz) != (100, 0.5, 45.0):
            raise ValueError("kind=official is 100 Hz and 0.5 to 45 Hz; leave hz, low_hz and high_hz as they are")
        if self.kind == "official" and self.artefacts != "none":
            raise ValueError("kind=official handles no artefacts; use kind=clean for them")
        return self


@dataclass(frozen=True, config=STRICT)
class AudioPreprocessing:
    hz: Literal[16000] = Field(default=16000, description="AST's filter bank is defined at 16 kHz")


@dataclass(frozen=True, config=STRICT)
class VideoPreprocessing:
    fps: int = Field(default=5, gt=0, description="frames per second that are kept, chosen by time stamp")
    size: int = Field(default=224, gt=0, description="stored frames are size x size pixels")
    codec: Literal["jpeg", "raw"] = Field(default="jpeg", description="how frames are stored")
    quality: int = Field(default=95, ge=1, le=100, description="of JPEG frames")
    crop: Literal["none", "face"] = Field(default="none", description="the whole frame, or a square around the face")
    face_step: int = Field(default=5, gt=0, description="the face is looked for in every so many kept frames")


@dataclass(frozen=True, config=STRICT)
class Preprocessing:
    """What the shards contain. Shards of different preprocessing never mix: its hash is in their path."""

    window_s: int = Field(default=5, gt=0, description="length of a window, seconds")
    eeg: EEGPreprocessing = EEGPreprocessing()
    audio: AudioPreprocessing = AudioPreprocessing()
    video: VideoPreprocessing = VideoPreprocessing()
    on_bad: Literal["partial", "drop", "fail"] = Field(
        default="partial",
        description="a file that is missing or cannot be used: keep the recording's other modalities, leave the "
        "recording out, or stop",
    )
    file_timeout_s: int = Field(default=120, gt=0, description="a recording that takes longer to decode is set aside")
    recordings_per_shard: int = Field(default=25, gt=0, description="recordings per shard")


@dataclass(frozen=True, config=STRICT)
class SplitConfig:
    protocol: Protocol = Field(default="subject_kfold", description="how people and recordings are divided")
    index: int = Field(default=0, ge=0, description="which fold; within-subject protocols: which person")
    n_folds: int = Field(default=6, ge=2, description="subject_kfold: number of folds")
    n_inner_folds: int = Field(default=3, ge=2, description="inner folds of the training people, for every choice")
    seed: int = Field(default=0, ge=0, description="shuffles people into folds")

"""Sections of an experiment on data: recordings, preprocessing, splits."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from eav_ray.config.kinds import check_dataset_name, find_dataset_module, import_plugins
from eav_ray.config.modalities import MODALITIES, ModalityName
from eav_ray.errors import ConfigError

AccessLevel = Literal["source_only", "unlabelled_block", "unlabelled_first_n", "labelled_k"]
Protocol = Literal["paper", "within", "within_validated", "subject_kfold", "loso"]


STRICT = ConfigDict(extra="forbid")


def define(default: Any, meaning: str | None = None, **limits: Any) -> Any:
    """Define a key of a section.

    Args:
        default: A dictionary is copied for each section.
        meaning: What `eav keys` says of it.
        limits: Of its values, as `pydantic.Field` takes them.
    """
    if isinstance(default, dict):
        return Field(default_factory=lambda: dict(default), description=meaning, **limits)
    return Field(default=default, description=meaning, **limits)


def _check_dataset(name: str) -> str:
    try:
        check_dataset_name(name)
    except ConfigError as error:
        raise PydanticCustomError("unknown_dataset", "{reason}", {"reason": str(error)}) from None
    return name


def _check_bids_column(column: str) -> str:
    table, _, name = column.partition(".")
    if column and (table not in BIDS_TABLES or not name):
        raise ValueError(f"{column} is no column of a BIDS table; write {', '.join(BIDS_TABLES)}, a point and its name")
    return column


@dataclass(frozen=True, config=STRICT)
class FeatureFile:
    """Where the features of a modality are that somebody else has computed."""

    path: str = define(
        "",
        "a CSV or Parquet file with one row a recording, or a folder with one npy, Parquet or safetensors file a "
        "recording, in it or in a folder of each subject; of signals such a folder of EEG-like files, or nothing: the "
        "EEG file of each recording",
    )
    key: str = define(
        "recording",
        "the column of a table that names recordings: as the reader does, as subject/recording, or by the name of one "
        "of its files",
    )
    hz: float = define(0.0, "rows per second of files without times", ge=0)


BIDS_TABLES = ("participants", "sessions", "scans", "events")
BIDSColumn = Annotated[str, AfterValidator(_check_bids_column)]


@dataclass(frozen=True, config=STRICT)
class BIDSData:
    """What is used of a BIDS data set (`data.dataset=bids`). A column is named with its table: `events.trial_type`."""

    label: BIDSColumn = define(
        "",
        "the column with labels: of participants, sessions or scans, a label a run; of events, a recording each, from "
        "its onset for its duration, or to the next one; may be empty with data.targets",
    )
    classes: tuple[str, ...] = define((), "only these labels; empty means all that there are")
    tasks: tuple[str, ...] = define((), "only these tasks; empty means all")
    audio: BIDSColumn = define(
        "", "the column of scans or events with sound files; empty: files with the names of the EEG that end in _audio"
    )
    video: BIDSColumn = define(
        "", "the column of scans or events with films; empty: files with the names of the EEG that end in _video"
    )


@dataclass(frozen=True, config=STRICT)
class TargetData:
    """Numbers that are predicted in place of classes, such as valence and arousal: one or several a recording."""

    columns: tuple[str, ...] = define(
        (),
        "columns of numbers, in this order; in BIDS with their table: participants.bdi; empty: classes are predicted",
    )
    path: str = define(
        "", "a CSV or Parquet file with one row a recording; empty: the data set's own table (recordings_table, bids)"
    )
    key: str = define(
        "recording",
        "the column of that file that names recordings: as the reader does, as subject/recording, or by the name of "
        "one of its files",
    )

    @model_validator(mode="after")
    def _check_names(self) -> "TargetData":
        if twice := next((name for name in self.names if self.names.count(name) > 1), None):
            raise ValueError(f"columns names {twice} twice; name each once")
        if not all(self.names):
            raise ValueError("columns has an empty name; name columns of numbers")
        if self.path and not self.columns:
            raise ValueError("path is given without columns; name the columns of numbers that are to be predicted")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the numbers: of a column of a BIDS table, what follows the name of the table."""
        starts = tuple(f"{table}." for table in BIDS_TABLES)
        is_named_with_table = [column.startswith(starts) and not self.path for column in self.columns]
        return tuple(
            column.partition(".")[2] if is_long else column
            for column, is_long in zip(self.columns, is_named_with_table, strict=True)
        )

    @property
    def own_columns(self) -> tuple[str, ...]:
        """Those that the data set's own tables have."""
        return () if self.path else self.columns


NO_TARGETS = TargetData()  # classes are predicted


def _write_yaml_true(value: Any) -> Any:
    """Take `data.labels=true`, as `eav keys` shows it, for the word that YAML does not read in it."""
    return "true" if value is True else value


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    dataset: Annotated[str, AfterValidator(_check_dataset)] = define("eav", "which reader opens `data.root`")
    root: str = define("", "folder of the data set, or the CSV/Parquet file of `data.dataset=recordings_table`")
    modalities: tuple[ModalityName, ...] = define(
        MODALITIES, "any of audio, eeg and video, and of the names under preprocessing.features"
    )
    features: dict[str, FeatureFile] = define(
        {}, "files with features of others: the name of the modality -> path, key, hz"
    )
    tasks: tuple[Literal["speaking", "listening"], ...] = define(
        ("speaking",), "EAV: which recordings; listening rows are only ever trained on"
    )
    subjects: tuple[str, ...] = define((), "only these people, by the reader's ids; empty means all")
    bids: BIDSData = BIDSData()
    targets: TargetData = NO_TARGETS
    labels: Annotated[Literal["true", "permuted"], BeforeValidator(_write_yaml_true)] = define(
        "true", "permuted: labels or numbers shuffled within each person, a control that must score at chance"
    )

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"reader_module": find_dataset_module(self.dataset)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Import the module of the reader in every process that receives the section, so that it knows it too."""
        state = dict(state)
        import_plugins([name for name in [state.pop("reader_module")] if name])
        self.__dict__.update(state)

    @property
    def predicts_numbers(self) -> bool:
        """Whether numbers are predicted, and not classes."""
        return bool(self.targets.columns)

    @model_validator(mode="after")
    def _check_modalities(self) -> "DataConfig":
        if not self.modalities or len(set(self.modalities)) != len(self.modalities):
            raise ValueError("data.modalities must name at least one modality, each once")
        return self


@dataclass(frozen=True, config=STRICT)
class EEGPreprocessing:
    kind: Literal["clean", "official"] = define(
        "clean", "our cleaning, or the steps of EAV's authors: causal, over the concatenation"
    )
    hz: int = define(100, "sampling rate of the stored windows, Hz", gt=0)
    low_hz: float = define(0.5, "lower edge of the pass band, Hz", gt=0)
    high_hz: float = define(45.0, "upper edge of the pass band, Hz", gt=0)
    notch_hz: float = define(50.0, "mains frequency, notched before decimation; 0 for none", ge=0)
    reference: Literal["average", "none"] = define("average", "average reference, or as recorded")
    unit: Literal["auto", "nanovolt", "microvolt", "millivolt", "volt"] = define(
        "auto", "unit of the raw numbers, where a file states none, or one that makes no EEG of them"
    )
    channels: tuple[str, ...] = define(
        (), "only these, in this order and in any spelling; empty means all that are on the scalp"
    )
    bad_channel_correlation: float = define(
        0.4, "a channel that correlates less than this with every other is bad; 0 to not look", ge=0, lt=1
    )
    artefacts: Literal["none", "blinks", "all"] = define(
        "none", "take out independent components that ICLabel calls eye blinks, or all that it calls artefacts"
    )
    align: Literal["none", "standardise", "euclidean"] = define(
        "none",
        "bring each person's EEG to common terms, by all of their recordings and no label: each channel to SD 1, or "
        "their mean covariance to the identity",
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
    hz: Literal[16000] = define(16000, "AST's filter bank is defined at 16 kHz")


@dataclass(frozen=True, config=STRICT)
class VideoPreprocessing:
    fps: int = define(5, "frames per second that are kept, chosen by time stamp", gt=0)
    size: int = define(224, "stored frames are size x size pixels", gt=0)
    codec: Literal["jpeg", "raw"] = define("jpeg", "how frames are stored")
    quality: int = define(95, "of JPEG frames", ge=1, le=100)
    crop: Literal["none", "face"] = define("none", "the whole frame, or a square around the face")
    face_step: int = define(5, "the face is looked for in every so many kept frames", gt=0)


FEATURE_NAME_PATTERN = re.compile(r"[a-z][a-z0-9_]*")
# Names that stand for something else in tables, or whose columns would.
RESERVED_NAMES = {"fusion", "product", "mean_probability", "stacking", "late_mean", "window_s", "features", "normalise"}
RESERVED_NAMES |= {"mean"}
RESERVED_NAMES |= {"subject", "recording", "window", "label", "task", "order", "id", "fold", "weight", "reason"}
RESERVED_PREFIXES = ("has_", "logit_", "value_", "target_", "audio_", "eeg_", "video_")


@dataclass(frozen=True, config=STRICT)
class FeaturePreprocessing:
    """How given features, or signals other than EEG, are stored: (steps, width) a window."""

    columns: tuple[str, ...] = define((), "columns of a table or Parquet file that are read, in this order")
    width: int = define(0, "features of an array, or of columns that hold lists; 0: as many as columns", ge=0)
    steps: int = define(
        1, "parts of a window, each the mean of the rows whose times lie in it; 1 for one row a recording", gt=0
    )
    signals: tuple[str, ...] = define(
        (),
        "channels of EEG-like files, such as ECG, skin conductance, respiration or gaze, that are stored in place of "
        "features, `steps` samples a window",
    )
    low_hz: float = define(0.0, "signals: slower than this is filtered out; 0: nothing is", ge=0)
    high_hz: float = define(0.0, "signals: faster than this is filtered out; 0: only what `steps` cannot hold", ge=0)

    @model_validator(mode="after")
    def _check_width(self) -> "FeaturePreprocessing":
        if self.signals and (self.columns or self.width):
            raise ValueError("give either signals=[...], or columns=[...] or width=... of features")
        if not self.columns and not self.width and not self.signals:
            raise ValueError(
                "give columns=[...] of the table, width=... of the arrays, or signals=[...], channels of EEG-like files"
            )
        for key, names in (("columns", self.columns), ("signals", self.signals)):
            if len(set(names)) != len(names):
                raise ValueError(f"{key} names one twice; name each once")
        if not self.signals and (self.low_hz or self.high_hz):
            raise ValueError("low_hz and high_hz are of signals=[...]; features are not filtered")
        if self.high_hz and self.low_hz >= self.high_hz:
            raise ValueError(f"low_hz is {self.low_hz:g}; it must be below high_hz={self.high_hz:g}")
        return self

    @property
    def n_features(self) -> int:
        return self.width or len(self.columns) or len(self.signals)


@dataclass(frozen=True, config=STRICT)
class Preprocessing:
    """What the shards contain. Shards of different preprocessing never mix: its hash is in their path."""

    window_s: int = define(5, "length of a window, seconds", gt=0)
    eeg: EEGPreprocessing = EEGPreprocessing()
    audio: AudioPreprocessing = AudioPreprocessing()
    video: VideoPreprocessing = VideoPreprocessing()
    features: dict[str, FeaturePreprocessing] = define(
        {},
        "further modalities, of features that others have computed, or of other signals: name -> columns, width or "
        "signals, and steps",
    )
    on_bad: Literal["partial", "drop", "fail"] = define(
        "partial",
        "a file that is missing or cannot be used: keep the recording's other modalities, leave the recording out, or "
        "stop",
    )
    file_timeout_s: int = define(120, "a recording that takes longer to decode is set aside", gt=0)
    recordings_per_shard: int = define(25, "recordings per shard", gt=0)

    @field_validator("features")
    @classmethod
    def _check_feature_names(cls, features: dict[str, FeaturePreprocessing]) -> dict[str, FeaturePreprocessing]:
        for name in features:
            if name in MODALITIES:
                raise ValueError(
                    f"{name} is read from recordings; name features of it otherwise, for example given_{name}"
                )
            is_reserved = name in RESERVED_NAMES or name.startswith(RESERVED_PREFIXES)
            if is_reserved or not FEATURE_NAME_PATTERN.fullmatch(name):
                raise ValueError(
                    f'"{name}" cannot be the name of a modality; use small letters, digits and _, and none of '
                    f"{', '.join(sorted(RESERVED_NAMES))} and what begins with {', '.join(RESERVED_PREFIXES)}"
                )
        return features

    def get_section(self, modality: str) -> Any:
        """Return the section of a modality."""
        return getattr(self, modality) if modality in MODALITIES else self.features[modality]


@dataclass(frozen=True, config=STRICT)
class SplitConfig:
    protocol: Protocol = define("subject_kfold", "how people and recordings are divided")
    index: int = define(0, "which fold; within-subject protocols: which person", ge=0)
    n_folds: int = define(6, "subject_kfold: number of folds", ge=2)
    n_inner_folds: int = define(3, "inner folds of the training people, for every choice", ge=2)
    seed: int = define(0, "shuffles people into folds", ge=0)
    access: AccessLevel = define(
        "source_only",
        "what may be known of a tested subject: nothing but the recording itself; all recordings without labels; the "
        "first `access_recordings` without labels; or so many with labels (`eav adapt`)",
    )
    access_recordings: int = define(0, "how many, with unlabelled_first_n and labelled_k", ge=0)

    @model_validator(mode="after")
    def _check_access(self) -> "SplitConfig":
        counts = self.access in ("unlabelled_first_n", "labelled_k")
        if counts != bool(self.access_recordings):
            need = "a number above 0" if counts else "0"
            raise ValueError(f"access={self.access} needs access_recordings of {need}; it is {self.access_recordings}")
        return self

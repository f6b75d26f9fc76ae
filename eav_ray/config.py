"""One YAML file is one Experiment: frozen, typed, checked before anything starts.

The command line, the search and the tests change an experiment in one way only:
`override(experiment, {"optim.lr": 3e-4})`.
Runs without torch and without ray.
"""

import contextlib
import hashlib
import json
import math
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints
from urllib.parse import urlsplit

import yaml
from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass

from eav_ray.errors import ConfigError, suggest_nearest

Modality = Literal["audio", "eeg", "video"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
Protocol = Literal["paper", "within", "within_validated", "subject_kfold", "loso"]
Precision = Literal["fp32", "bf16", "fp16"]
STRICT = ConfigDict(extra="forbid")


def _check_heads(heads: int, *widths: int) -> None:
    if any(width % heads for width in widths):
        allowed = [h for h in range(1, 65) if not any(width % h for width in widths)]
        shown = " and ".join(map(str, dict.fromkeys(widths)))
        raise ValueError(f"heads is {heads}, which does not divide width {shown}; use one of {allowed}")


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    dataset: Literal["eav", "ravdess", "cremad", "eegmat", "manifest"] = Field(
        default="eav", description="which reader opens `data.root`"
    )
    root: str = Field(default="", description="folder of the data set, or the CSV/Parquet file of `data.set=manifest`")
    modalities: tuple[Modality, ...] = Field(default=MODALITIES, description="any subset of audio, eeg, video")
    tasks: tuple[Literal["speaking", "listening"], ...] = Field(
        default=("speaking",), description="EAV: which recordings; listening rows are only ever trained on"
    )
    subjects: tuple[str, ...] = Field(default=(), description="only these people, by the reader's ids; empty means all")
    labels: Literal["true", "permuted"] = Field(
        default="true", description="permuted: labels shuffled within each person, a control that must score at chance"
    )

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
    """What the shards contain. Shards of different profiles never mix: its hash is in their path."""

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


@dataclass(frozen=True, config=STRICT)
class EEGformerConfig:
    """Wan et al. 2023 (Frontiers in Neuroscience 17:1148855)."""

    kind: Literal["eegformer"] = "eegformer"
    filters: int = Field(default=32, gt=0, description="filters per electrode of the 1-D convolutions (C)")
    width: int = Field(default=128, gt=0, description="width of the regional and synchronous blocks (D)")
    temporal_width: int = Field(default=256, gt=0, description="width of the temporal blocks and of the tokens (Dt)")
    segments: int = Field(default=8, gt=0, description="contiguous time segments, one token each (M)")
    depth: int = Field(default=2, gt=0, description="blocks per stage")
    heads: int = Field(default=8, gt=0, description="attention heads; must divide both widths")
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_sizes(self) -> "EEGformerConfig":
        _check_heads(self.heads, self.width, self.temporal_width)
        if self.width % self.segments:
            raise ValueError(f"segments is {self.segments}, which does not divide width {self.width}")
        return self


@dataclass(frozen=True, config=STRICT)
class EAVTransformerConfig:
    """The EEG transformer that the reference's released code trains, with its sizes."""

    kind: Literal["eav_transformer"] = "eav_transformer"
    width: int = Field(default=60, gt=0, description="filters of the second convolution, and width of the tokens")
    feed_forward: int = Field(default=3, gt=0, description="width of the feed-forward layers")
    depth: int = Field(default=6, gt=0, description="post-norm blocks")
    heads: int = Field(default=4, gt=0, description="attention heads; must divide the width")
    segments: int = Field(default=10, gt=0, description="time segments that fusion sees, one token each")
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_sizes(self) -> "EAVTransformerConfig":
        _check_heads(self.heads, self.width)
        return self


@dataclass(frozen=True, config=STRICT)
class BandPowerConfig:
    """Differential entropy of five frequency bands per electrode and segment of time, and a small network."""

    kind: Literal["bandpower"] = "bandpower"
    width: int = Field(default=64, gt=0, description="width of the hidden layer and of the tokens")
    segments: int = Field(default=5, gt=0, description="time segments, one token each")
    dropout: float = Field(default=0.3, ge=0, lt=1)


@dataclass(frozen=True, config=STRICT)
class MFCCConfig:
    """Mel-frequency cepstral coefficients with their first and second differences, by librosa, and a small network."""

    kind: Literal["mfcc"] = "mfcc"
    coefficients: int = Field(default=20, gt=1, le=128, description="cepstral coefficients")
    width: int = Field(default=64, gt=0, description="width of the hidden layer and of the tokens")
    segments: int = Field(default=10, gt=0, description="time segments, one token each")
    dropout: float = Field(default=0.3, ge=0, lt=1)


WEIGHTS_HELP = "published weights to start from: a folder as a hub has them (safetensors)"


@dataclass(frozen=True, config=STRICT)
class ASTConfig:
    """Gong et al. 2021, through `transformers.ASTModel`."""

    kind: Literal["ast"] = "ast"
    weights: str = Field(default="", description=f"{WEIGHTS_HELP}, or its name on the Hugging Face hub")
    width: int = Field(default=768, gt=0, description="hidden size")
    depth: int = Field(default=12, gt=0, description="layers")
    heads: int = Field(default=12, gt=0, description="attention heads; must divide the width")
    max_length: int = Field(
        default=512, ge=16, description="spectrogram frames the model sees (10 ms each); 1024 is parity"
    )
    stride: int = Field(default=10, gt=0, description="stride of the 16 x 16 patches; published weights want 10")
    mask_bands: int = Field(default=0, ge=0, le=128, description="SpecAugment: at most so many mel bands are hidden")
    mask_frames: int = Field(default=0, ge=0, description="SpecAugment: at most so many frames of 10 ms are hidden")
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_sizes(self) -> "ASTConfig":
        _check_heads(self.heads, self.width)
        return self


@dataclass(frozen=True, config=STRICT)
class ViTConfig:
    """A Vision Transformer of timm on single frames; its class tokens are the time tokens."""

    kind: Literal["vit"] = "vit"
    name: str = Field(
        default="vit_base_patch16_224",
        description="a plain `vit_*` of timm with a class token: no relpos, rope, dinov3, siglip, gap",
    )
    weights: str = Field(
        default="",
        description=f'{WEIGHTS_HELP}, of timm or of a transformers ViT, or one such file; "timm" fetches timm\'s',
    )
    norm_eps: float = Field(default=1e-6, gt=0, description="of the LayerNorms; 1e-12 for weights of transformers")
    image_size: int = Field(default=224, gt=0, description="must equal profile.video.size")
    patch: int = Field(default=16, gt=0, description="patch size; must divide image_size")
    width: int = Field(default=768, gt=0, description="embedding width")
    depth: int = Field(default=12, gt=0, description="blocks")
    heads: int = Field(default=12, gt=0, description="attention heads; must divide the width")
    frames: int = Field(default=25, gt=0, description="frames per window that are used, evenly spaced")
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_sizes(self) -> "ViTConfig":
        if self.image_size % self.patch:
            raise ValueError(f"patch is {self.patch}, which does not divide image_size {self.image_size}")
        _check_heads(self.heads, self.width)
        return self


@dataclass(frozen=True, config=STRICT)
class FusionConfig:
    kind: Literal["shared_attention", "late_mean", "gated", "bottleneck", "single_token"] = Field(
        default="shared_attention",
        description="shared multi-head attention over all tokens; the mean of unimodal logits; a softmax gate over "
        "pooled features; bottleneck tokens (MBT); or attention over their concatenation, as the reference ran it",
    )
    input: Literal["tokens", "pooled"] = Field(
        default="tokens",
        description="what shared_attention and bottleneck read: all time tokens, or one pooled token a modality",
    )
    width: int = Field(default=256, gt=0, description="width of the shared tokens; single_token has that of its input")
    heads: int = Field(default=8, gt=0, description="attention heads; must divide the width")
    depth: int = Field(default=2, gt=0, description="bottleneck: layers")
    bottlenecks: int = Field(default=4, gt=0, description="bottleneck: tokens through which modalities exchange")
    dropout: float = Field(default=0.1, ge=0, lt=1)
    positions: bool = Field(
        default=True,
        description="shared_attention and bottleneck: time marks of tokens; without them, when something was said is "
        "known only as far as the encoders tell",
    )
    modality_dropout: float = Field(
        default=0.2, ge=0, lt=1, description="chance that training hides a modality; never all"
    )
    n_query_steps: int = Field(
        default=1,
        gt=0,
        description="shared_attention: how often its query reads all tokens; from the second on what it asks of one "
        "modality depends on the others",
    )
    late_fusion_residual: bool = Field(
        default=True,
        description="shared_attention: what it reads is added to the unimodal log probabilities, weighed by the "
        "modality weights",
    )
    modality_weight_loss: float = Field(
        default=1.0,
        ge=0,
        description="how much training draws modality weights to the modalities that are right; 0 for not at all",
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> "FusionConfig":
        if self.kind != "single_token":
            _check_heads(self.heads, self.width)
        return self

    @property
    def uses_pooled_features(self) -> bool:
        """Whether it reads nothing of a modality but its pooled features."""
        return self.kind in ("gated", "single_token") or (self.kind != "late_mean" and self.input == "pooled")


def _make_kind_discriminator(default: type) -> Discriminator:
    """Tells the members of a union by `kind`; without it, the first of them."""
    return Discriminator(lambda v: v.get("kind", default.kind) if isinstance(v, dict) else getattr(v, "kind", None))


EEGEncoderConfig = Annotated[
    Annotated[EEGformerConfig, Tag("eegformer")]
    | Annotated[EAVTransformerConfig, Tag("eav_transformer")]
    | Annotated[BandPowerConfig, Tag("bandpower")],
    _make_kind_discriminator(EEGformerConfig),
]
AudioEncoderConfig = Annotated[
    Annotated[ASTConfig, Tag("ast")] | Annotated[MFCCConfig, Tag("mfcc")], _make_kind_discriminator(ASTConfig)
]
ENCODER_KINDS: dict[str, dict[str, type]] = {  # the first is the default
    "model.eeg": {"eegformer": EEGformerConfig, "eav_transformer": EAVTransformerConfig, "bandpower": BandPowerConfig},
    "model.audio": {"ast": ASTConfig, "mfcc": MFCCConfig},
}


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    eeg: EEGEncoderConfig = EEGformerConfig()
    audio: AudioEncoderConfig = ASTConfig()
    video: ViTConfig = ViTConfig()


def get_token_width(section: Any) -> int:
    """Width of the tokens that an encoder of this section of `model` makes."""
    return section.temporal_width if isinstance(section, EEGformerConfig) else section.width


@dataclass(frozen=True, config=STRICT)
class OptimConfig:
    """AdamW with a linear warm-up and a cosine decay to zero."""

    lr: float = Field(default=3e-4, gt=0, description="peak learning rate")
    weight_decay: float = Field(default=0.01, ge=0, description="not applied to biases and norms")
    epochs: int = Field(default=10, gt=0)
    batch: int = Field(default=32, gt=0, description="global batch, windows; must be a multiple of runtime.workers")
    warmup: float = Field(default=0.1, ge=0, le=1, description="share of the steps that warm up")
    clip: float = Field(default=1.0, ge=0, description="largest gradient norm; 0 for none")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    encoder_lr_scale: float = Field(
        default=1.0, ge=0, description="learning rate of encoders, as a multiple of that of heads and fusion"
    )
    class_weights: bool = Field(default=False, description="weigh each class by the inverse of its training windows")
    mixup: float = Field(
        default=0.0, ge=0, description="alpha of the Beta distribution by which windows are mixed; 0 for none"
    )


@dataclass(frozen=True, config=STRICT)
class EncoderOptimConfig(OptimConfig):
    """Of one encoder alone: published weights are first kept, under a head that learns, and then trained on."""

    frozen_epochs: int = Field(
        default=0, ge=0, description="epochs before `epochs` that train the head alone; skipped without model weights"
    )
    frozen_lr: float = Field(default=5e-4, gt=0, description="peak learning rate of those epochs")


@dataclass(frozen=True, config=STRICT)
class PerModalityOptimConfig:
    eeg: EncoderOptimConfig = EncoderOptimConfig(lr=1e-4, epochs=100)
    audio: EncoderOptimConfig = EncoderOptimConfig(lr=5e-5, epochs=15, batch=32, frozen_epochs=10)
    video: EncoderOptimConfig = EncoderOptimConfig(lr=5e-5, epochs=15, batch=64, frozen_epochs=10)


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    mode: Literal["staged", "end_to_end", "staged_then_joint"] = Field(
        default="staged",
        description="each encoder alone, then fusion on frozen encoders; all together from the start; or staged, and "
        "then all together from there",
    )
    encoders: PerModalityOptimConfig = PerModalityOptimConfig()
    joint: OptimConfig = Field(default=OptimConfig(lr=5e-6, epochs=5), description="the last part of staged_then_joint")
    adaptation: OptimConfig = Field(
        default=OptimConfig(lr=3e-5, epochs=10, batch=8, encoder_lr_scale=0.0),
        description="training on labelled recordings of a new person; with encoder_lr=0 encoders stay as they are",
    )
    checkpoint_epochs: int = Field(default=5, gt=0, description="a checkpoint to resume from every so many epochs")
    checkpoint_steps: int = Field(default=0, ge=0, description="and every so many steps; 0 for none")
    checkpoint_minutes: float = Field(
        default=10.0, ge=0, description="and when the last one is so many minutes old; 0 for none"
    )
    keep_checkpoints: int = Field(
        default=2, gt=0, description="checkpoints that are kept while a training runs, beside the best by validation"
    )
    validate_epochs: int = Field(
        default=0,
        ge=0,
        description="measure a fusion or joint training on its validation rows, and save it, every so many epochs; "
        "0: only at the end. The result is the last epoch all the same",
    )


@dataclass(frozen=True, config=STRICT)
class SearchDimension:
    """One dimension of a search space: either `choice`, or `low` and `high`."""

    choice: tuple[int | float | str, ...] = Field(default=(), description="allowed values")
    low: float | None = Field(default=None, description="lower end of a range")
    high: float | None = Field(default=None, description="upper end of a range")
    log: bool = Field(default=False, description="search the range in its logarithm")

    @model_validator(mode="after")
    def _check_one_kind(self) -> "SearchDimension":
        ranged = self.low is not None and self.high is not None and self.low < self.high
        if bool(self.choice) == ranged:
            raise ValueError("give either choice: [...], or low: and high: with low < high")
        if self.log and ranged and (self.low or 0) <= 0:
            raise ValueError("a logarithmic range needs low > 0")
        return self


@dataclass(frozen=True, config=STRICT)
class SearchConfig:
    mode: Literal["fusion", "full"] = Field(
        default="fusion",
        description="what a candidate trains: the fusion, on embeddings of encoders that are trained once; or "
        "everything, as train.mode says, by a group of runtime.workers of its own",
    )
    candidates: int = Field(default=16, gt=0, description="how many sets of changes are tried")
    ask_batch_size: int = Field(
        default=4, gt=0, description="candidates that are suggested together; part of what makes it repeatable"
    )
    max_concurrent_trials: int = Field(
        default=0,
        ge=0,
        description="workers that a batch of candidates is shared out to, with mode=full groups of workers: a cluster "
        "grows for them as far as its own limits let it. 0: as many as there is room for, by those limits where they "
        "are known",
    )
    fusion_batch_size: int = Field(
        default=64, gt=0, description="fusion trainings that are computed as one batch; 1: one after the other"
    )
    sampler: Literal["tpe", "random", "cmaes", "grid"] = Field(
        default="tpe",
        description="Optuna's; cmaes draws what is no number at random; grid takes every combination of lists in turn",
    )
    cost: Literal["", "parameters", "gmac"] = Field(
        default="",
        description="what is kept small beside a high score: the parameters of the whole model, or its multiplications "
        "for a window (10^9). The best candidates are then those that no other beats in both",
    )
    refit: int = Field(
        default=1, gt=0, description="how many of the best candidates are trained again, on all training rows, and kept"
    )
    prune: bool = Field(
        default=False,
        description="train a candidate on no more folds once the mean of its scores lies below the median that "
        "candidates of earlier batches had on as many folds",
    )
    rungs: tuple[float, ...] = Field(
        default=(),
        description="shares of its epochs, as [0.25, 0.5], after which a fusion is compared in the same way, and left; "
        "with mode=fusion",
    )
    storage: str = Field(
        default="",
        description="database of the study, as sqlite:///search.db or postgresql://user@host/name; empty: a journal in "
        "the results store",
    )

    @field_validator("looks")
    @classmethod
    def _check_rungs(cls, rungs: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < look < 1 for look in rungs) or list(rungs) != sorted(set(rungs)):
            raise ValueError("give shares between 0 and 1 in ascending order, as [0.25, 0.5]")
        return rungs

    @field_validator("storage")
    @classmethod
    def _check_no_password(cls, url: str) -> str:
        # It is a part of every experiment.json.
        if urlsplit(url).password is not None:
            raise ValueError("a password does not belong into an experiment; give it by PGPASSWORD or ~/.pgpass")
        return url

    space: dict[str, SearchDimension] = Field(
        default_factory=lambda: {
            "fusion.heads": SearchDimension(choice=(1, 2, 4, 8)),
            "optim.lr": SearchDimension(low=1e-4, high=3e-3, log=True),
        },
        description="dotted key -> choice or range; keys under fusion. and optim., with mode=full under model. and "
        "train. too",
    )


@dataclass(frozen=True, config=STRICT)
class RuntimeConfig:
    address: str = Field(
        default="", description="Ray cluster to join (host:port); empty: RAY_ADDRESS, else a Ray of its own"
    )
    workers: int = Field(default=2, gt=0, description="training workers of a group, one process each")
    min_workers: int = Field(
        default=0,
        ge=0,
        description="a group goes on with as few as these when nodes are lost, and grows again; 0: always `workers`",
    )
    cpus_per_worker: float = Field(default=1, gt=0)
    gpus_per_worker: float = Field(default=0, ge=0)
    groups: int = Field(default=1, gt=0, description="worker groups that pull runs from the queue side by side")
    engine: Literal["deepspeed", "torch"] = Field(default="deepspeed", description="training engine")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=0,
        description="what DeepSpeed's ZeRO splits between workers: nothing, optimizer state, gradients too, weights "
        "too. Each stage saves memory and costs time",
    )
    offload: bool = Field(
        default=False, description="keep the optimizer state in CPU memory; deepspeed with zero_stage 1 to 3"
    )
    micro_batch: int = Field(
        default=0,
        ge=0,
        description="windows that a worker computes at once; gradients of its share of the batch are accumulated. "
        "0: the whole share at once",
    )
    precision: Precision = Field(
        default="fp32",
        description="compute in float32, bfloat16 or float16, this with a dynamic scale of the loss; weights and "
        "optimizer state stay in fp32",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute activations of encoders again in the backward pass: less memory, more time"
    )
    dashboard: bool = Field(default=False, description="start Ray's dashboard with a local Ray")
    dashboard_host: str = Field(default="127.0.0.1", description="beyond loopback only with RAY_AUTH_MODE=token")

    @model_validator(mode="after")
    def _check_min_workers(self) -> "RuntimeConfig":
        if self.min_workers > self.workers:
            raise ValueError(f"min_workers is {self.min_workers}, more than workers={self.workers}; use at most those")
        return self

    @property
    def min_group_size(self) -> int:
        return self.min_workers or self.workers

    def find_batch_problem(self, key: str, batch: int) -> str:
        """Why a group cannot share a global batch equally, whatever number of workers it may have; empty if it can."""
        indivisible = next((n for n in range(self.min_group_size, self.workers + 1) if batch % n), 0)
        if not indivisible:
            return ""
        unit = math.lcm(*range(self.min_group_size, self.workers + 1))
        problem = f"{key} is {batch}, which runtime.workers={self.workers} does not divide; use a multiple of {unit}"
        if self.min_workers:
            problem = (
                f"{key} is {batch}, which {indivisible} workers do not divide (runtime.min_workers={self.min_workers}, "
                f"runtime.workers={self.workers}); use a multiple of {unit}, or set runtime.min_workers=0"
            )
        return problem


@dataclass(frozen=True, config=STRICT)
class StoreConfig:
    shards: str = Field(default="data/shards", description="where preprocessing writes: a folder, s3:// or gs://")
    results: str = Field(
        default="results", description="checkpoints, embeddings and result tables: a folder, s3:// or gs://"
    )
    cache: str = Field(default="cache", description="local folder of the memory-mapped windows of each node")
    cache_gb: float = Field(default=200.0, gt=0, description="largest size of that folder, GiB")
    mlflow: str = Field(
        default="",
        description="MLflow's tracking URI, which is told the curves of trainings: http://127.0.0.1:5000, "
        "sqlite:///results/mlflow.db; empty for none",
    )

    @model_validator(mode="after")
    def _check_mlflow_uri(self) -> "StoreConfig":
        if self.mlflow and "://" not in self.mlflow:
            raise ValueError(
                f"mlflow is {self.mlflow!r}; give a tracking URI, for example http://127.0.0.1:5000 or "
                "sqlite:///results/mlflow.db"
            )
        # Every checkpoint holds the experiment that it is of.
        if urlsplit(self.mlflow).password:
            raise ValueError(
                "mlflow holds a password; give it by MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return self


@dataclass(frozen=True, config=STRICT)
class Experiment:
    name: str = Field(
        default="experiment", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="names its folder of results"
    )
    seed: int = Field(default=0, ge=0)
    data: DataConfig = DataConfig()
    preprocessing: Preprocessing = Preprocessing()
    split: SplitConfig = SplitConfig()
    model: ModelConfig = ModelConfig()
    fusion: FusionConfig = FusionConfig()
    optim: OptimConfig = Field(default=OptimConfig(), description="the fusion's, or everything's in end_to_end")
    train: TrainConfig = TrainConfig()
    search: SearchConfig = SearchConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    store: StoreConfig = StoreConfig()

    @model_validator(mode="after")
    def _check_consistency(self) -> "Experiment":
        problems: list[str] = []
        if "video" in self.data.modalities:
            if self.model.video.image_size != self.preprocessing.video.size:
                problems.append(
                    f"model.video.image_size is {self.model.video.image_size}, but profile.video.size is "
                    f"{self.preprocessing.video.size}; make them equal"
                )
            stored_frames = self.preprocessing.video.fps * self.preprocessing.window_s
            if self.model.video.frames > stored_frames:
                problems.append(
                    f"model.video.frames is {self.model.video.frames}, but a window of the profile stores {stored_frames}; "
                    f"set model.video.frames to at most {stored_frames}"
                )
        frames = 100 * self.preprocessing.window_s - 2  # of 25 ms, every 10 ms
        audio = self.model.audio
        if "audio" in self.data.modalities and isinstance(audio, ASTConfig) and audio.max_length < frames:
            problems.append(
                f"profile.window_s is {self.preprocessing.window_s}, which makes {frames} spectrogram frames, but "
                f"model.audio.max_length is {audio.max_length} and would cut the rest of the audio off; "
                f"set model.audio.max_length to at least {frames}"
            )
        sections = [getattr(self.model, m) for m in self.data.modalities]
        total_width = sum(map(get_token_width, sections))
        if self.fusion.kind == "single_token" and len(sections) > 1 and total_width % self.fusion.heads:
            allowed = [h for h in range(1, 65) if total_width % h == 0]
            problems.append(
                f"fusion.heads is {self.fusion.heads}, which does not divide {total_width}, the widths of all encoders "
                f"together, over which fusion.kind=single_token attends; use one of {allowed}"
            )
        batches = {"optim.batch": self.optim.batch}
        if self.train.mode == "staged_then_joint":
            batches["train.joint.batch"] = self.train.joint.batch
        batches |= {f"train.encoders.{m}.batch": getattr(self.train.encoders, m).batch for m in self.data.modalities}
        for key, batch in batches.items():
            if problem := self.runtime.find_batch_problem(key, batch):
                problems.append(problem)
        if self.runtime.offload and (self.runtime.engine != "deepspeed" or not self.runtime.zero_stage):
            problems.append(
                f"runtime.offload needs runtime.engine=deepspeed and runtime.zero_stage of 1, 2 or 3; they are "
                f"{self.runtime.engine} and {self.runtime.zero_stage}"
            )
        allowed = ("fusion.", "optim.") if self.search.mode == "fusion" else ("fusion.", "optim.", "model.", "train.")
        for key in self.search.space:
            if not key.startswith(allowed):
                hint = "" if len(allowed) > 2 else "; with search.mode=full also those under model. and train."
                prefixes = f"{', '.join(allowed[:-1])} and {allowed[-1]}"
                problems.append(f"search.space.{key}: only keys under {prefixes} can be searched{hint}")
        if problems:
            raise ValueError("\n".join(problems))
        return self


EXPERIMENT_ADAPTER = TypeAdapter(Experiment)


class _YamlLoader(yaml.SafeLoader):
    """YAML without dates: no key takes one, so `name: 2026-11-22` is text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _YamlLoader)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a tag that its value does not fit
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{source} is not YAML: {where}{' '.join(str(reason).split())}") from None


def list_keys(section: Any = None, prefix: str = "") -> dict[str, tuple[str, Any, str]]:
    """Every dotted key with its type, default and description, for `--help` and for error messages."""
    section = Experiment() if section is None else section
    table: dict[str, tuple[str, Any, str]] = {}
    hints = get_type_hints(type(section))
    for field in fields(section):
        hint, value = hints[field.name], getattr(section, field.name)
        if is_dataclass(value):
            table |= list_keys(value, f"{prefix}{field.name}.")
        else:
            info = type(section).__pydantic_fields__[field.name]
            shown_type = (
                " | ".join(map(repr, get_args(hint))) if str(hint).startswith("typing.Literal") else _format_type(hint)
            )
            table[prefix + field.name] = (shown_type, value, info.description or "")
    return table


def list_other_kinds() -> list[tuple[str, dict[str, tuple[str, Any, str]]]]:
    """The keys of sections that stand in the place of a default one: (`model.eeg.kind=bandpower`, its `keys`)."""
    return [
        (f"{place}.kind={kind}", list_keys(section(), f"{place}."))
        for place, members in ENCODER_KINDS.items()
        for kind, section in list(members.items())[1:]
    ]


def _format_type(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


def build_experiment(tree: Any, *, source: str) -> Experiment:
    """Check a nested dictionary and make it an Experiment.

    Raises:
        ConfigError: All problems at once, one a line, each with its key, what is allowed and the nearest right key.
    """
    try:
        return EXPERIMENT_ADAPTER.validate_python(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {_explain_validation_error(e)}" for e in error.errors())) from None


def _explain_validation_error(error: Any) -> str:
    # The third part of the way into a union is the kind that was tried, which is no key.
    loc = [str(part) for part in error["loc"]]
    kind = loc.pop(2) if len(loc) > 2 and loc[2] in ENCODER_KINDS.get(".".join(loc[:2]), {}) else ""
    path = ".".join(loc)
    if error["type"] == "union_tag_not_found":
        return f"{path} is {error['input']!r}; give a section with a kind of {', '.join(ENCODER_KINDS[path])}"
    if error["type"] == "union_tag_invalid":
        return f"{path}.kind is {error['ctx']['tag']!r}; use one of {', '.join(ENCODER_KINDS[path])}"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        if kind:
            place = ".".join(loc[:2])
            table = list_keys(ENCODER_KINDS[place][kind](), f"{place}.")
            return (
                f'"{path}" is not a key of {place}.kind={kind}{suggest_nearest(path, table)} (`--help` lists all keys)'
            )
        return (
            f'"{path}" is not a key of an experiment{suggest_nearest(path, list_key_names())} (`--help` lists all keys)'
        )
    if error["type"] == "value_error":
        text = str(error["ctx"]["error"]).replace("\n", "; ")
        return f"{path}: {text}" if path else text
    return f"{path} is {error['input']!r}: {error['msg']}"


def list_key_names() -> list[str]:
    table = list_keys() | {key: row for _, rows in list_other_kinds() for key, row in rows.items()}
    sections = {key.rsplit(".", 1)[0] for key in table if "." in key}
    return [*table, *sections]


def load_experiment(path: str | Path, changes: dict[str, Any] | None = None) -> Experiment:
    """Read one YAML file, apply dotted changes, check everything.

    Raises:
        ConfigError: The file is missing, is not YAML, or holds a wrong key or value.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        known_files = ", ".join(sorted(str(p) for p in Path("jobs/experiments").glob("*.yaml"))) or "none found"
        raise ConfigError(f"no experiment file {path}; the ones of this project: {known_files}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text, at byte {error.start}; save it as UTF-8") from None
    tree = _parse_yaml(text, str(path)) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of sections such as `data:`; it holds {type(tree).__name__}")
    return build_experiment(
        _apply_changes(_fill_defaults(to_dict(Experiment()), tree), changes or {}), source=str(path)
    )


def _fill_defaults(defaults: dict[str, Any], tree: dict[str, Any], place: str = "") -> dict[str, Any]:
    """What a file says, with the defaults of where it says nothing.

    The defaults of a section are those of its place and not of its type: `train.encoders.audio` has its own.
    """
    filled = dict(defaults)
    for key, value in tree.items():
        default, key_path = defaults.get(key), f"{place}{key}"
        if value is None and isinstance(default, dict):
            continue  # a section with nothing in it
        filled[key] = value
        if isinstance(default, dict) and isinstance(value, dict) and key_path != "search.space":
            is_other_kind = (
                key_path in ENCODER_KINDS and value.get("kind", default["kind"]) != default["kind"]
            )  # which has other keys
            filled[key] = value if is_other_kind else _fill_defaults(default, value, f"{key_path}.")
    return filled


def override(experiment: Experiment, changes: dict[str, Any]) -> Experiment:
    """A copy with dotted changes, checked as a whole: `override(e, {"optim.lr": 3e-4})`."""
    return build_experiment(_apply_changes(to_dict(experiment), changes), source="override")


def _apply_changes(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    tree = json.loads(json.dumps(tree, default=str))  # not deepcopy: an alias of YAML must not be changed twice
    # Another kind is another section: the keys of the one before do not come along.
    for dotted, value in sorted(changes.items(), key=lambda change: not change[0].endswith(".kind")):
        # The keys of search.space are themselves dotted, so what follows that prefix is one key.
        before, space, rest = dotted.partition("search.space.")
        parts = ["search", "space", rest] if space and not before else dotted.split(".")
        node = tree
        for part in parts[:-1]:
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                raise ConfigError(
                    f'"{dotted}" is not a key of an experiment{suggest_nearest(dotted, list_key_names())}'
                )
            node = child
        place = ".".join(parts[:-1])
        if (
            parts[-1] == "kind"
            and place in ENCODER_KINDS
            and value != node.get("kind", next(iter(ENCODER_KINDS[place])))
        ):
            node.clear()
        node[parts[-1]] = _fill_section_defaults(".".join(parts), value)
    return tree


def _fill_section_defaults(place: str, value: Any) -> Any:
    """A section that a change gives as a whole, with the defaults of its place for the keys that it leaves out."""
    if not isinstance(value, dict) or place in (*ENCODER_KINDS, "search.space"):
        return value
    default: Any = to_dict(Experiment())
    for part in place.split("."):
        default = default.get(part) if isinstance(default, dict) else None
    return _fill_defaults(default, value, f"{place}.") if isinstance(default, dict) else value


def parse_changes(words: list[str]) -> dict[str, Any]:
    """`["optim.lr=3e-4"]` to `{"optim.lr": 0.0003}`; values are read as YAML."""
    changes: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f'"{word}" is not a change; write key=value, for example optim.lr=3e-4')
        value = _parse_yaml(text, f"{key}={text!r}") if text else ""
        if isinstance(value, str):  # YAML 1.1 takes 3e-4 for a string: it wants a dot in the mantissa
            with contextlib.suppress(ValueError):
                value = float(value)
        changes[key] = value
    return changes


def to_dict(experiment: Any) -> dict[str, Any]:
    """Plain lists, dictionaries and numbers, as they are written to JSON."""
    return json.loads(json.dumps(asdict(experiment)))


def digest(*parts: Any, length: int = 16) -> str:
    """A short hash of JSON-like values; dataclasses count by their fields, and the order of keys is irrelevant."""
    plain = [to_dict(p) if is_dataclass(p) and not isinstance(p, type) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:length]

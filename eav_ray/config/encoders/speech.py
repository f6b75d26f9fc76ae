"""Configure speech encoders of transformers."""

from typing import Any, ClassVar, Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT, Preprocessing, define
from eav_ray.config.encoders.base import WEIGHTS_HELP, AudioEncoderConfig
from eav_ray.errors import ConfigError

SAMPLE_RATE_HZ = 16000
WHISPER_SECONDS = 30  # that Whisper reads at once, whatever is spoken in them
WAVEFORM_SIZES = {"width": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads"}
# What each architecture's configuration in transformers calls our keys.
SIZE_NAMES = dict.fromkeys(("wav2vec2", "hubert", "wavlm"), WAVEFORM_SIZES) | {
    "whisper": {"width": "d_model", "depth": "encoder_layers", "heads": "encoder_attention_heads"}
}
WAVEFORM_SETTINGS = (
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
    "feat_extract_norm",
    "feat_extract_activation",
    "conv_dim",
    "conv_stride",
    "conv_kernel",
    "conv_bias",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
    "do_stable_layer_norm",
)
# What else of such a configuration its network depends on.
SETTING_NAMES = {
    "wav2vec2": WAVEFORM_SETTINGS,
    "hubert": (*WAVEFORM_SETTINGS, "feat_proj_layer_norm"),
    "wavlm": (*WAVEFORM_SETTINGS, "num_buckets", "max_bucket_distance"),
    "whisper": (
        "encoder_ffn_dim",
        "activation_function",
        "num_mel_bins",
        "scale_embedding",
    ),
}


@dataclass(frozen=True, config=STRICT)
class SpeechConfig(AudioEncoderConfig):
    """Any wav2vec2, HuBERT or WavLM of transformers, or the encoder of any Whisper.

    With `weights`, architecture, sizes and settings are those of the folder's config.json.
    """

    network_key: ClassVar[str] = "architecture"
    kind: Literal["speech"] = "speech"
    weights: str = define("", f"{WEIGHTS_HELP}; its config.json decides architecture, sizes and settings")
    architecture: Literal["wav2vec2", "hubert", "wavlm", "whisper"] = define("wav2vec2", "of the network")
    width: int = define(768, "hidden size", gt=0)
    depth: int = define(12, "layers", gt=0)
    heads: int = define(12, "attention heads; must divide the width", gt=0)
    settings: dict[str, Any] = define(
        {}, "what else the network depends on, by the names of its config.json, as {conv_bias: true}"
    )
    normalise: bool = define(True, "bring each recording to mean 0 and SD 1; config.json calls it do_normalize")
    layers: Literal["mix", "last"] | int = define(
        "mix", "what is read: a learned mix over all layers, the last, or the one of a number"
    )
    frames_per_token: int = define(5, "frames of 20 ms of which each token is the mean", gt=0)
    dropout: float = define(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_settings(self) -> "SpeechConfig":
        allowed = SETTING_NAMES[self.architecture]
        if unknown := sorted(set(self.settings) - set(allowed)):
            raise ValueError(f"settings has {', '.join(unknown)}; {self.architecture} has {', '.join(allowed)}")
        for name, value in self.settings.items():
            numbers = value if isinstance(value, list | tuple) else [value]
            if any(
                isinstance(number, int | float) and not isinstance(number, bool) and number <= 0 for number in numbers
            ):
                raise ValueError(f"settings.{name} is {value}; give what is above 0")
        # Published weights say later how deep the network is.
        if isinstance(self.layers, int) and (self.layers < 1 or (self.layers > self.depth and not self.weights)):
            raise ValueError(f"layers is {self.layers}; use mix, last, or a number from 1 to depth, {self.depth}")
        return self

    def scale_sizes(self, factor: float) -> dict[str, Any]:
        sizes: dict[str, Any] = super().scale_sizes(factor)
        wide = ("intermediate_size", "encoder_ffn_dim")  # without a setting they are four times the width
        sizes["settings"] = {name: value for name, value in self.settings.items() if name not in wide}
        if isinstance(self.layers, int):
            sizes["layers"] = min(self.layers, sizes["depth"])
        return sizes

    def find_problems(self, preprocessing: Preprocessing) -> list[str]:
        problems: list[str] = []
        if self.architecture == "whisper" and preprocessing.window_s > WHISPER_SECONDS:
            problems.append(
                f"preprocessing.window_s is {preprocessing.window_s}, but Whisper reads {WHISPER_SECONDS} s; shorten "
                "the window"
            )
        return problems

    def adopt_settings(self, published: dict[str, Any], where: str) -> dict[str, Any]:
        architecture = published.get("model_type")
        if not isinstance(architecture, str) or architecture not in SIZE_NAMES:
            known = ", ".join(SIZE_NAMES)
            raise ConfigError(
                f"{where}, whose config.json names the model_type {architecture}; {self.kind} takes {known}"
            )
        sizes = SIZE_NAMES[architecture]
        if missing := [name for name in sizes.values() if name not in published]:
            raise ConfigError(f"{where}, whose config.json does not say {', '.join(missing)}")
        rate = published.get("sampling_rate", SAMPLE_RATE_HZ)
        if rate != SAMPLE_RATE_HZ:
            raise ConfigError(f"{where}, which want sound at {rate} Hz; windows are stored at {SAMPLE_RATE_HZ}")
        if architecture != "whisper" and not isinstance(published.get("do_normalize"), bool):
            raise ConfigError(
                f"{where}, which do not say whether recordings are normalised (do_normalize); put the model's "
                "preprocessor_config.json beside its config.json"
            )
        if isinstance(self.layers, int) and self.layers > published[sizes["depth"]]:
            raise ConfigError(
                f"{where}, which have {published[sizes['depth']]} layers, but model.audio.layers is {self.layers}"
            )
        settings = {name: published[name] for name in SETTING_NAMES[architecture] if name in published}
        found = {key: published[name] for key, name in sizes.items()} | {"settings": settings}
        return found | {
            "architecture": architecture,
            "normalise": published.get("do_normalize", True) if architecture != "whisper" else self.normalise,
        }

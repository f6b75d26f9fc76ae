"""Speech encoders of transformers: wav2vec2, HuBERT, WavLM, and the encoder of Whisper."""

import math
import warnings
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from eav_ray.config import Preprocessing
from eav_ray.config.encoders.speech import SAMPLE_RATE_HZ, SIZE_NAMES, WHISPER_SECONDS, SpeechConfig
from eav_ray.errors import ConfigError
from eav_ray.models.encoders.base import (
    DataShapes,
    Encoder,
    EncoderOutput,
    Features,
    SubjectStatistics,
    collect_module_arguments,
)
from eav_ray.models.encoders.pretrained import (
    ExpectedSetting,
    check_settings,
    load_tensors,
    read_weights,
    rename_tensors,
)
from eav_ray.models.encoders.silence import find_sound

WHISPER_HOP_SAMPLES = 320  # between the tokens of Whisper: two frames of its spectrogram
NORMALISATION_EPS = 1e-7  # of transformers' Wav2Vec2FeatureExtractor
# What published files hold besides the encoder: heads, decoders, and what was used in training them.
LEFT_OUT = (
    "adapter.",
    "classifier.",
    "decoder.",
    "feature_extractor.bias",
    "feature_extractor.weight",
    "layer_weights",
    "lm_head.",
    "masked_spec_embed",
    "objective.",
    "proj_out.",
    "project_hid.",
    "project_q.",
    "projector.",
    "quantizer.",
    "tdnn.",
)
RENAMING_RULES = {
    "waveform": (
        (r"^(wav2vec2|hubert|wavlm)\.", ""),
        (r"\.pos_conv_embed\.conv\.weight_g$", ".pos_conv_embed.conv.parametrizations.weight.original0"),
        (r"\.pos_conv_embed\.conv\.weight_v$", ".pos_conv_embed.conv.parametrizations.weight.original1"),
    ),
    "whisper": ((r"^model\.", ""), (r"^encoder\.", "")),
}


# Of each row of a batch, how many samples are a recording; None: all. Several threads may use one model. An exported
# graph knows them as a tensor alone.
N_SAMPLES: ContextVar[list[int] | Tensor | None] = ContextVar("N_SAMPLES", default=None)


class ConvolutionsByRecording(nn.Module):
    """The convolutions with which wav2vec2, HuBERT and WavLM begin, of each recording without its padding.

    Their group normalisation takes statistics over time: padding would change what becomes of the recording.
    `N_SAMPLES` says how long the recordings are.
    """

    def __init__(self, library: nn.Module) -> None:
        super().__init__()
        layers: Any = library.conv_layers
        self.conv_layers = layers  # under the library's name, which weights have too

    def forward(self, x_BT: Tensor) -> Tensor:
        """(batch, samples) to (batch, channels, frames), zero past the end of a recording."""
        n_samples = N_SAMPLES.get()
        if n_samples is None:
            return self._convolve(x_BT)
        if isinstance(n_samples, Tensor):
            return self._convolve_padded(x_BT, n_samples)
        rows = [self._convolve(x_BT[i : i + 1, :n])[0] for i, n in enumerate(n_samples)]
        n_frames = count_frames(x_BT.shape[1], self.conv_layers)
        return torch.stack([nn.functional.pad(row, (0, n_frames - row.shape[1])) for row in rows])

    def _convolve_padded(self, x_BT: Tensor, n_samples_B: Tensor) -> Tensor:
        """Compute the same for all rows at once: the group normalisation, of single channels, counts whole frames."""
        x, n_B11 = x_BT[:, None], n_samples_B[:, None, None]
        for layer in self.conv_layers:
            n_B11 = count_frames(n_B11, [layer])
            norm = getattr(layer, "layer_norm", None)
            if not isinstance(norm, nn.GroupNorm):
                x = layer(x)
                continue
            x = layer.conv(x)
            is_whole = torch.arange(x.shape[-1], device=x.device) < n_B11
            centred = x - torch.where(is_whole, x, 0).sum(-1, keepdim=True) / n_B11
            variance = torch.where(is_whole, centred, 0).square().sum(-1, keepdim=True) / n_B11
            normalised = centred / (variance + norm.eps).sqrt()
            x = layer.activation(normalised * norm.weight[:, None] + norm.bias[:, None])
        return torch.where(torch.arange(x.shape[-1], device=x.device) < n_B11, x, 0)

    def _convolve(self, x_BT: Tensor) -> Tensor:
        x = x_BT[:, None]
        for layer in self.conv_layers:
            x = layer(x)
        return x


def count_frames(n_samples: Any, conv_layers: Any) -> Any:
    """Count the frames that the convolutions make of a number of samples, or of each of a tensor of them."""
    for layer in conv_layers:
        n_samples = (n_samples - layer.conv.kernel_size[0]) // layer.conv.stride[0] + 1
    return n_samples


class WaveformNetwork(nn.Module):
    """wav2vec2 (Baevski et al. 2020, arXiv 2006.11477), HuBERT (2106.07447) or WavLM (2110.13900), from a waveform.

    Attributes:
        hop, field: Samples between frames, and that a frame sees.
        begin: The first sample that frame 0 sees.
    """

    def __init__(self, architecture: str, arguments: dict[str, Any], dropout: float, *, normalise: bool) -> None:
        super().__init__()
        import transformers

        name = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}[architecture]
        self.normalise = normalise
        # Layers that are skipped at random and masks that are drawn differ between ranks: left to our own dropout.
        config = getattr(transformers, f"{name}Config")(
            **arguments,
            hidden_dropout=dropout,
            attention_dropout=dropout,
            activation_dropout=0.0,
            feat_proj_dropout=0.0,
            layerdrop=0.0,
            mask_time_prob=0.0,
            mask_feature_prob=0.0,
        )
        self.model = getattr(transformers, f"{name}Model")(config)
        self.by_recording = config.feat_extract_norm == "group"
        self.model.feature_extractor = ConvolutionsByRecording(self.model.feature_extractor)
        self.hop, self.field, self.begin = math.prod(config.conv_stride), 1, 0
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            self.field = (self.field - 1) * stride + kernel
        self.final_norm = "encoder.layer_norm" if config.do_stable_layer_norm else ""

    def count_frames(self, n_samples: Any) -> Any:
        return count_frames(n_samples, self.model.feature_extractor.conv_layers)

    def forward(self, x_BT: Tensor, n_samples_B: Tensor) -> tuple[Tensor, ...]:
        """Compute what enters the first layer, what each makes of it, and the last hidden state."""
        sample_T = torch.arange(x_BT.shape[1], device=x_BT.device)
        mask_BT = sample_T < n_samples_B[:, None]
        if self.normalise:
            x_BT = normalise_recordings(x_BT, mask_BT)
        is_counted = x_BT.is_meta  # only the arithmetic
        lengths = n_samples_B if torch.compiler.is_exporting() or is_counted else n_samples_B.tolist()
        token = N_SAMPLES.set(lengths if self.by_recording and not is_counted else None)
        try:
            with warnings.catch_warnings():  # WavLM's own way of giving PyTorch two kinds of masks
                warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask", UserWarning)
                out = self.model(x_BT, None if is_counted else mask_BT.long(), output_hidden_states=True)
        finally:
            N_SAMPLES.reset(token)
        return (*out.hidden_states, out.last_hidden_state)


class WhisperNetwork(nn.Module):
    """The encoder of Whisper (Radford et al. 2022, arXiv 2212.04356), which reads 30 s, silence where there is less."""

    hop, field, begin, final_norm = WHISPER_HOP_SAMPLES, WHISPER_HOP_SAMPLES, -WHISPER_HOP_SAMPLES // 2, "layer_norm"

    def __init__(self, arguments: dict[str, Any], dropout: float) -> None:
        super().__init__()
        from transformers import WhisperConfig, WhisperFeatureExtractor
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        self.config = WhisperConfig(**arguments, dropout=dropout, attention_dropout=dropout)
        self.model = WhisperEncoder(self.config)
        positions = self.model.embed_positions  # fixed sinusoids, which nothing may train
        table = positions.weight.detach()
        del positions.weight
        positions.register_buffer("weight", table)
        self.extract = WhisperFeatureExtractor(self.config.num_mel_bins)

    def count_frames(self, n_samples: Any) -> Any:
        return -(-n_samples // self.hop)

    def forward(self, x_BT: Tensor, n_samples_B: Tensor) -> tuple[Tensor, ...]:
        """Compute what enters the first layer, what each makes of it, and the last hidden state, of the window."""
        return self.encode(self.compute_spectrogram(x_BT), self.count_frames(x_BT.shape[1]))

    def compute_spectrogram(self, x_BT: Tensor) -> Tensor:
        """Compute the log-mel spectrogram of 30 s: (batch, bands, 3000)."""
        if x_BT.is_meta:  # where only the arithmetic is counted
            return x_BT.new_empty(len(x_BT), self.config.num_mel_bins, 100 * WHISPER_SECONDS)
        rows = [np.asarray(row) for row in x_BT.detach().float().cpu()]
        with torch.autocast("cpu", enabled=False):  # of half precision it would be another spectrogram
            features = self.extract(rows, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").input_features
        return features.to(x_BT.device)

    def encode(self, spectrogram_BFT: Tensor, n_frames: int) -> tuple[Tensor, ...]:
        """Compute the hidden states of a spectrogram, of its first frames."""
        out = self.model(spectrogram_BFT, output_hidden_states=True)
        return tuple(state[:, :n_frames] for state in (*out.hidden_states, out.last_hidden_state))


def normalise_recordings(x_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Bring what is recorded of each row to mean 0 and SD 1; the rest is 0. As Wav2Vec2FeatureExtractor does."""
    n_B1 = mask_BT.sum(1, keepdim=True)
    x_BT = torch.where(mask_BT, x_BT, 0)
    centred = torch.where(mask_BT, x_BT - x_BT.sum(1, keepdim=True) / n_B1, 0)
    variance = centred.square().sum(1, keepdim=True) / n_B1
    return centred / (variance + NORMALISATION_EPS).sqrt()


class Speech(Encoder):
    """Audio windows to one token for a few frames of 20 ms: the mean of those that hold sound.

    A recording that is shorter than the window gives what the library makes of it alone. Frames without sound
    (`silence.find_sound`) are in no token and no pooled feature; the network hears them.

    Args:
        settings: What else of the library's configuration is not its default.
        normalise: Whether each recording is brought to mean 0 and SD 1 first; Whisper has its own way.
        layers: `mix`, a softmax-weighted mean over what enters the first layer and what each makes of it, as in SUPERB
            (Yang et al. 2021, arXiv 2105.01051); `last`; or the number of one.
        frames_per_token: How many frames a token is the mean of.
        silence_db: How far below a window's loudest part silence begins; 0: only padding is silence.
    Raises:
        ConfigError: The settings make no network, or the window is shorter than a frame.
    """

    head_parameters = ("mix",)

    def __init__(
        self,
        *,
        window_s: float,
        architecture: str,
        width: int,
        depth: int,
        heads: int,
        settings: dict[str, Any],
        normalise: bool,
        layers: str | int,
        frames_per_token: int,
        dropout: float,
        silence_db: float,
    ) -> None:
        super().__init__()
        self.architecture, self.width, self.heads, self.settings = architecture, width, heads, settings
        self.layers, self.frames_per_token, self.silence_db = layers, frames_per_token, silence_db
        # Layers past the one that is read are not built.
        self.depth, self.n_layers = depth, layers if isinstance(layers, int) else depth
        sizes = dict(zip(SIZE_NAMES[architecture].values(), (width, self.n_layers, heads), strict=True))
        # The width of the feed-forward layers is four times that of the tokens in all that is published.
        wide = "encoder_ffn_dim" if architecture == "whisper" else "intermediate_size"
        arguments = {wide: 4 * width} | settings | sizes
        try:
            if architecture == "whisper":
                self.network = WhisperNetwork(arguments, dropout)
            else:
                self.network = WaveformNetwork(architecture, arguments, dropout, normalise=normalise)
        except (ArithmeticError, KeyError, RuntimeError, StrictDataclassError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"model.audio.settings makes no {architecture}: {reason}") from None
        self.normalise = normalise
        # Whisper's own last hidden state ends its list; those of the others do not pass the last normalisation.
        reads_last = layers == "last" or (architecture == "whisper" and layers in ("mix", depth))
        self.final_norm = self.network.final_norm if not reads_last else ""
        if self.final_norm:
            *above, last = self.final_norm.split(".")
            setattr(self.network.model.get_submodule(".".join(above)), last, nn.Identity())
        self.exports_windows = architecture != "whisper"  # whose library computes the spectrogram
        self.mix = nn.Parameter(torch.zeros(depth + 1)) if layers == "mix" else None
        n_samples = int(window_s * SAMPLE_RATE_HZ)
        self.n_frames = n_frames = self.network.count_frames(n_samples)
        if n_frames < 1:
            raise ConfigError(f"preprocessing.window_s is {window_s}, shorter than one frame of {architecture}")
        n_tokens = -(-n_frames // frames_per_token)
        centres = self.network.begin + self.network.field / 2 + self.network.hop * torch.arange(n_frames)
        known = torch.arange(n_tokens * frames_per_token) < n_frames
        centres = nn.functional.pad(centres, (0, len(known) - n_frames)).view(n_tokens, -1)
        times = centres.sum(1) / known.view(n_tokens, -1).sum(1) / SAMPLE_RATE_HZ
        self.register_buffer("times_s", times.clamp(0, window_s), persistent=False)

    def list_blocks(self) -> list[nn.Module]:
        network: Any = self.network.model
        return list(network.layers if self.architecture == "whisper" else network.encoder.layers)

    def enable_gradient_checkpointing(self) -> None:
        self.network.model.gradient_checkpointing_enable({"use_reentrant": False})

    def compute_features(self, x: Tensor) -> Features:
        """Compute what Whisper's network reads, (batch, bands, 3000), and which frames of the window hold sound."""
        assert isinstance(self.network, WhisperNetwork), "the others read waveforms"
        return Features(self.network.compute_spectrogram(x), self._find_sounding_frames(x)[1])

    def forward(
        self, x_BT: Tensor | Features, present_B: Tensor, subject: SubjectStatistics | None = None
    ) -> EncoderOutput:
        """
        Args:
            x_BT: Waveform in [-1, 1], 16 kHz, (batch, samples); or what `compute_features` made of it.
            present_B: True where the window has audio.
        """
        if isinstance(x_BT, Features):
            assert isinstance(self.network, WhisperNetwork)
            states, mask_BT = self.network.encode(x_BT.values, self.n_frames), x_BT.known
        else:
            n_samples_B, mask_BT = self._find_sounding_frames(x_BT)
            states = self.network(x_BT, n_samples_B)
        frames = self.read_layers(states)
        missing = -frames.shape[1] % self.frames_per_token
        values = nn.functional.pad(frames * mask_BT[..., None], (0, 0, 0, missing))
        counts = nn.functional.pad(mask_BT, (0, missing))
        values = values.unflatten(1, (-1, self.frames_per_token)).sum(2)
        counts = counts.unflatten(1, (-1, self.frames_per_token)).sum(2)
        tokens = values / counts.clamp(min=1)[..., None]
        pooled = values.sum(1) / counts.sum(1, keepdim=True)
        encoded = self.build_output(tokens, pooled, present_B)
        return encoded._replace(mask_BN=encoded.mask_BN & (counts > 0))

    def _find_sounding_frames(self, x_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Find how many samples of each window are a recording, and which of its frames hold sound, one at least."""
        sound = find_sound(x_BT, self.silence_db)
        n_samples_B = sound.n_samples_B.clamp(min=self.network.begin + self.network.field)
        frame_T = torch.arange(self.network.count_frames(x_BT.shape[1]), device=x_BT.device)
        is_whole = frame_T < self.network.count_frames(n_samples_B)[:, None]
        first_T = self.network.begin + self.network.hop * frame_T
        ends_T = first_T + self.network.field
        mask_BT = (first_T < sound.end_B[:, None]) & (ends_T > sound.begin_B[:, None]) & is_whole
        # A sound may end within the last frame that is not whole; a window keeps a frame all the same.
        return n_samples_B, mask_BT | (is_whole & ~mask_BT.any(1, keepdim=True))

    def read_layers(self, states: tuple[Tensor, ...]) -> Tensor:
        """Read (batch, frames, width) of all hidden states, the last of which is the library's."""
        *layers, last = states
        if self.mix is not None:
            shares = self.mix.float().softmax(0)
            return torch.stack([share * layer.float() for share, layer in zip(shares, layers, strict=True)]).sum(0)
        return last if self.layers == "last" else layers[-1]

    def load_pretrained(self, weights: str) -> None:
        key = "model.audio.weights"
        state, published = read_weights(weights, key)
        check_settings(published, self._list_expected_settings(), key, weights)
        is_whisper = self.architecture == "whisper"
        state = rename_tensors(state, RENAMING_RULES["whisper" if is_whisper else "waveform"])
        place = "layers" if is_whisper else "encoder.layers"
        left_out = [f"{place}.{k}." for k in range(self.n_layers, self.depth)]
        left_out += [f"{self.final_norm}."] if self.final_norm else []
        load_tensors(self.network.model, state, key, weights, (*LEFT_OUT, *left_out))

    def _list_expected_settings(self) -> list[ExpectedSetting]:
        sizes = {"width": self.width, "depth": self.depth, "heads": self.heads}
        names = SIZE_NAMES[self.architecture]
        expected = [ExpectedSetting(names[key], value, f"model.audio.{key}") for key, value in sizes.items()]
        expected += [ExpectedSetting(name, value, "model.audio.settings") for name, value in self.settings.items()]
        expected.append(ExpectedSetting("model_type", self.architecture, "model.audio.architecture"))
        expected.append(ExpectedSetting("sampling_rate", SAMPLE_RATE_HZ, "other weights are needed"))
        if isinstance(self.network, WhisperNetwork):
            extract = self.network.extract
            spectrogram = {"hop_length": extract.hop_length, "n_fft": extract.n_fft, "chunk_length": WHISPER_SECONDS}
            spectrogram["feature_size"] = self.network.config.num_mel_bins
            expected += [ExpectedSetting(n, v, "other weights are needed") for n, v in spectrogram.items()]
        else:
            expected.append(ExpectedSetting("do_normalize", self.normalise, "model.audio.normalise"))
        return expected


def build(section: SpeechConfig, preprocessing: Preprocessing, shapes: DataShapes) -> Speech:
    """Build the encoder that a section of an experiment describes."""
    return Speech(window_s=preprocessing.window_s, **collect_module_arguments(section))

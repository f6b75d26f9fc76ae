"""The Audio Spectrogram Transformer (Gong et al. 2021, arXiv 2104.01778) through `transformers.ASTModel`."""

import math

import torch
from torch import Tensor, nn

from eav_ray.config import Preprocessing
from eav_ray.config.encoders.ast import ASTConfig
from eav_ray.errors import ConfigError
from eav_ray.models.encoders.base import (
    AudioEncoder,
    DataShapes,
    EncoderOutput,
    Features,
    SubjectStatistics,
    collect_module_arguments,
)
from eav_ray.models.encoders.pretrained import (
    RENAMING_RULES,
    ExpectedSetting,
    check_settings,
    load_tensors,
    read_weights,
    rename_tensors,
)
from eav_ray.models.encoders.silence import find_sound

FRAME_SAMPLES, HOP_SAMPLES, N_FFT, N_MELS, SAMPLE_RATE_HZ, PATCH_SIZE = 400, 160, 512, 128, 16000, 16
AUDIOSET_MEAN, AUDIOSET_SD = -4.2677393, 4.5689974  # AudioSet's log-mel statistics, which the published weights expect
POWER_FLOOR = 1.1920929e-07


class FilterBank(nn.Module):
    """The 128 log-mel features of `transformers.ASTFeatureExtractor`, batched and differentiable.

    Kaldi's recipe: frames of 25 ms every 10 ms, each with its mean removed and pre-emphasised on its own, a symmetric
    Hann window, power spectrum, triangles in mel space without area normalisation, natural logarithm.
    """

    def __init__(self, max_length: int) -> None:
        super().__init__()
        self.max_length = max_length

    def forward(self, wave_BT: Tensor, n_samples_B: Tensor | None = None) -> Tensor:
        """(batch, samples) at 16 kHz in [-1, 1] to (batch, max_length, 128), normalised as AST expects.

        Longer input is cut; shorter input is padded with zeros before normalisation, as the library does.

        Args:
            n_samples_B: How many samples of each row are a recording; features of the rest are padding. None: all.
        """
        # One window at a time on a CPU, where its 3 MB stay in the cache: half the time of a batch.
        chunks = wave_BT.split(1) if wave_BT.device.type == "cpu" else [wave_BT]
        logmel = torch.cat([self._compute_log_mel(part) for part in chunks])
        missing = self.max_length - logmel.shape[1]
        logmel = nn.functional.pad(logmel, (0, 0, 0, missing)) if missing > 0 else logmel[:, : self.max_length]
        if n_samples_B is not None:
            frame_T = torch.arange(self.max_length, device=wave_BT.device)
            logmel = logmel.masked_fill((frame_T >= count_frames(n_samples_B)[:, None])[..., None], 0)
        return (logmel - AUDIOSET_MEAN) / (2 * AUDIOSET_SD)

    def _compute_log_mel(self, wave_BT: Tensor) -> Tensor:
        # In double precision, which autocast leaves alone: a quiet band beside a loud one drowns in the rounding of
        # single precision.
        window = torch.hann_window(FRAME_SAMPLES, periodic=False, dtype=torch.float64, device=wave_BT.device)
        frames = wave_BT.double().unfold(1, FRAME_SAMPLES, HOP_SAMPLES)
        frames = frames - frames.mean(-1, keepdim=True)
        previous = torch.cat([frames[..., :1], frames[..., :-1]], -1)
        frames = (frames - 0.97 * previous) * window
        spectrum = torch.fft.rfft(frames, n=N_FFT)
        power = spectrum.real.square() + spectrum.imag.square()
        return torch.clamp(power @ _build_mel_filters().to(wave_BT.device), min=POWER_FLOOR).log().float()


def count_frames(n_samples_B: Tensor) -> Tensor:
    """(batch,) whole frames in so many samples, at least one."""
    return ((n_samples_B - FRAME_SAMPLES) // HOP_SAMPLES + 1).clamp(min=1)


def _build_mel_filters() -> Tensor:
    """(257, 128) weights of the power bins: 130 equally spaced mel points from 20 to 8000 Hz."""

    def hz_to_mel(hz: Tensor) -> Tensor:
        return 1127 * torch.log1p(hz / 700)

    lowest, highest = (1127 * math.log1p(hz / 700) for hz in (20, 8000))
    edges = torch.linspace(lowest, highest, N_MELS + 2, dtype=torch.float64)
    bins = hz_to_mel(torch.arange(N_FFT // 2 + 1, dtype=torch.float64) * SAMPLE_RATE_HZ / N_FFT)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    return torch.clamp(torch.minimum(rising, falling), min=0)


def mask_random_span(x_BTF: Tensor, max_length: int, dim: int) -> Tensor:
    """Set one run of random length, 0 to `max_length`, along an axis to 0, the mean; another one in each row."""
    if not max_length:
        return x_BTF
    size, b = x_BTF.shape[dim], len(x_BTF)
    length = torch.rand(b, 1, device=x_BTF.device) * (min(max_length, size) + 1) // 1
    start = torch.rand(b, 1, device=x_BTF.device) * (size - length + 1) // 1
    index = torch.arange(size, device=x_BTF.device)
    masked = (index >= start) & (index < start + length)
    return x_BTF.masked_fill(masked[:, :, None] if dim == 1 else masked[:, None], 0)


class AST(AudioEncoder):
    """Audio windows to time tokens: the patch tokens averaged over frequency.

    The network gets what the library's extractor makes of the recording alone, its silent ends included, with features
    padded where the window is filled up. Time tokens whose patches hold no sound (`silence.find_sound`) are masked. In
    the network itself every token attends to every other, to padding too, and the pooled features are the mean of the
    two special tokens, which read them all: so the published weights were trained, and their outputs stay those of the
    library.

    Args:
        max_length: Spectrogram frames (10 ms each) that the model sees.
        stride: Of the 16 x 16 patches, in both directions.
        mask_bands, mask_frames: SpecAugment (Park et al. 2019, arXiv 1904.08779): in training a run of mel bands
            and one of frames, of random length up to these, are replaced by the mean.
        silence_db: How far below a window's loudest part silence begins; 0: only padding is silence.
    """

    exports_windows = False  # spectra in double precision

    def __init__(
        self,
        *,
        window_s: float,
        width: int,
        depth: int,
        heads: int,
        max_length: int,
        stride: int,
        dropout: float,
        silence_db: float,
        mask_bands: int = 0,
        mask_frames: int = 0,
    ) -> None:
        super().__init__()
        if window_s * SAMPLE_RATE_HZ < FRAME_SAMPLES:
            raise ConfigError(f"preprocessing.window_s is {window_s}, shorter than one audio frame of 25 ms")
        # Two seconds, in every process that a search or a group starts; most of them build no AST.
        from transformers import ASTConfig, ASTModel

        self.width, self.stride, self.silence_db = width, stride, silence_db
        self.mask_bands, self.mask_frames = mask_bands, mask_frames
        self.filter_bank = FilterBank(max_length)
        self.model = ASTModel(
            ASTConfig(
                hidden_size=width,
                num_hidden_layers=depth,
                num_attention_heads=heads,
                intermediate_size=4 * width,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=0.0,
                time_stride=stride,
                frequency_stride=stride,
                max_length=max_length,
                num_mel_bins=N_MELS,
            )
        )
        # The library leaves these at zero, where a training from nothing starts without any order.
        embeddings = self.model.embeddings
        for table in (embeddings.position_embeddings, embeddings.cls_token, embeddings.distillation_token):
            nn.init.trunc_normal_(table, std=0.02)
        self.n_patch_bands = (N_MELS - PATCH_SIZE) // stride + 1
        n_tokens = (max_length - PATCH_SIZE) // stride + 1
        centre_frames = torch.arange(n_tokens) * stride + PATCH_SIZE // 2
        times = torch.clamp(centre_frames * HOP_SAMPLES / SAMPLE_RATE_HZ, max=window_s)
        self.register_buffer("times_s", times, persistent=False)

    def enable_gradient_checkpointing(self) -> None:
        self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def compute_features(self, x: Tensor) -> Features:
        """Compute the log-mel spectrogram, and which of its frames hold sound; at least one in each window.

        Args:
            x: Waveform in [-1, 1], 16 kHz, (batch, samples).
        Returns:
            (batch, max_length, 128), normalised and padded as the library's extractor does with the recording alone,
            and (batch, max_length), True where a frame touches sound.
        """
        sound = find_sound(x, self.silence_db)
        max_length = self.filter_bank.max_length
        last_frame_B = torch.minimum(-(-sound.end_B // HOP_SAMPLES), count_frames(sound.n_samples_B)) - 1
        last_frame_B = last_frame_B.clamp(max=max_length - 1)
        first_frame_B = ((sound.begin_B - FRAME_SAMPLES) // HOP_SAMPLES + 1).clamp(min=0)
        first_frame_B = torch.minimum(first_frame_B, last_frame_B)
        frame_T = torch.arange(max_length, device=x.device)
        mask_BT = (frame_T >= first_frame_B[:, None]) & (frame_T <= last_frame_B[:, None])
        return Features(self.filter_bank(x, sound.n_samples_B), mask_BT)

    def normalise_features(self, x: Tensor | Features, subject: SubjectStatistics | None) -> Features:
        """Compute the spectrogram, its sounding frames normalised by those of the subject where these are given.

        To an SD of 1/2, as the library's; what does not sound stays as it is, padding above all.
        """
        features = self.get_features(x)
        if subject is None:
            return features
        normalised = subject.normalise(features.values) / 2
        return features._replace(values=torch.where(features.expand_known(), normalised, features.values))

    def encode_features(self, features: Tensor, mask: Tensor, present_B: Tensor) -> EncoderOutput:
        if self.training:
            features = mask_random_span(mask_random_span(features, self.mask_bands, 2), self.mask_frames, 1)
        out = self.model(features)
        patches = out.last_hidden_state[:, 2:]  # after the two special tokens, frequency-major
        b, _, d = patches.shape
        tokens = patches.view(b, self.n_patch_bands, -1, d).mean(1)
        encoded = self.build_output(tokens, out.pooler_output, present_B)
        # A patch holds sound where any of its frames does.
        mask_BN = nn.functional.max_pool1d(mask[:, None].float(), PATCH_SIZE, self.stride)[:, 0] > 0
        # The last frames may belong to no patch; a window keeps tokens all the same.
        mask_BN = mask_BN | ~mask_BN.any(1, keepdim=True)
        return encoded._replace(mask_BN=encoded.mask_BN & mask_BN)

    def load_pretrained(self, weights: str) -> None:
        key = "model.audio.weights"
        state, settings = read_weights(weights, key)
        check_settings(settings, _list_expected_settings(self), key, weights)
        load_tensors(self.model, _crop_position_table(self, rename_tensors(state, RENAMING_RULES)), key, weights)


def build(section: ASTConfig, preprocessing: Preprocessing, shapes: DataShapes) -> AST:
    """Build the encoder that a section of an experiment describes."""
    return AST(window_s=preprocessing.window_s, **collect_module_arguments(section))


def _list_expected_settings(encoder: AST) -> list[ExpectedSetting]:
    model_config, fixed = encoder.model.config, "the filter bank has AudioSet's"
    return [
        ExpectedSetting("num_attention_heads", model_config.num_attention_heads, "model.audio.heads"),
        ExpectedSetting("time_stride", model_config.time_stride, "model.audio.stride"),
        ExpectedSetting("frequency_stride", model_config.frequency_stride, "model.audio.stride"),
        ExpectedSetting("layer_norm_eps", model_config.layer_norm_eps, "other weights are needed"),
        ExpectedSetting("hidden_act", model_config.hidden_act, "other weights are needed"),
        ExpectedSetting("mean", AUDIOSET_MEAN, fixed),
        ExpectedSetting("std", AUDIOSET_SD, fixed),
    ]


def _crop_position_table(encoder: AST, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The position table cut to the columns of a shorter spectrogram: the centre ones, as the original does."""
    name = "embeddings.position_embeddings"
    bands, have = encoder.n_patch_bands, state.get(name)
    n_columns = len(encoder.times_s)
    if have is None or have.ndim != 3 or (have.shape[1] - 2) % bands or have.shape[1] - 2 <= bands * n_columns:
        return state
    special, table = have[:, :2], have[:, 2:].unflatten(1, (bands, -1))
    start = (table.shape[2] - n_columns) // 2
    return state | {name: torch.cat([special, table[:, :, start : start + n_columns].flatten(1, 2)], 1)}

"""Any EEG network of braindecode, with or without published weights."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eav_ray.config import Preprocessing
from eav_ray.config.encoders.braindecode import BraindecodeConfig
from eav_ray.electrodes import canonicalize_channel_name
from eav_ray.errors import ConfigError
from eav_ray.models.encoders.base import (
    DataShapes,
    Encoder,
    EncoderOutput,
    Features,
    SubjectStatistics,
    TokenHead,
    collect_module_arguments,
    compute_signal_features,
)
from eav_ray.models.encoders.braindecode_networks import Signals, TokenLayout, build_network
from eav_ray.models.encoders.pretrained import ExpectedSetting, check_settings, load_tensors, read_weights

LEFT_OUT = ("final_layer.",)
# Of networks that look electrodes up by name: what ties the weights to those that they were trained with.
LEFT_OUT_ALIGNED = {"EEGPT": ("chan_proj.",), "SignalJEPA": ("transformer.decoder.",)}
QUANTILE = 0.95


class OwnHead(TokenHead):
    """The last layer of a network of braindecode, on the features that its tokens were made of."""

    def __init__(self, last_layer: nn.Module, layout: TokenLayout) -> None:
        super().__init__()
        self.last_layer, self.layout = last_layer, layout

    def forward(self, tokens_BND: Tensor) -> Tensor:
        return self.last_layer(self.layout.to_features(tokens_BND))


class Derivation(nn.Module):
    """Choose the electrodes that a network reads, in its order, or differences of two.

    Args:
        wanted: Names in any spelling, or `A-B`; none: all that are there.
        available: Names of the stored channels, in order; empty where nobody knows them.
    Raises:
        ConfigError: An electrode is missing.
    """

    plus: Tensor
    minus: Tensor
    is_difference: Tensor

    def __init__(self, wanted: Sequence[str], available: Sequence[str], n_channels: int) -> None:
        super().__init__()
        if wanted and not available:
            raise ConfigError(
                "model.eeg.channels names electrodes, but nobody knows those of these shards; preprocess them anew"
            )
        pairs = [_split_difference(name, available) for name in wanted]
        rows = [(_find(a, available, wanted), _find(b, available, wanted) if b else -1) for a, b in pairs]
        rows = rows or [(k, -1) for k in range(n_channels)]
        if not wanted:
            self.names = tuple(available)
        else:
            self.names = tuple("-".join(map(canonicalize_channel_name, filter(None, pair))) for pair in pairs)
        if len(set(rows)) < len(rows):
            raise ConfigError(f"model.eeg.channels names an electrode twice: {', '.join(wanted)}; keep one of each")
        self.is_unchanged = rows == [(k, -1) for k in range(n_channels)]
        for key, values in (("plus", [a for a, _ in rows]), ("minus", [max(b, 0) for _, b in rows])):
            self.register_buffer(key, torch.tensor(values), persistent=False)
        self.register_buffer("is_difference", torch.tensor([[b >= 0] for _, b in rows]), persistent=False)

    def forward(self, x_BST: Tensor) -> Tensor:
        if self.is_unchanged:
            return x_BST
        first = x_BST[:, self.plus]
        if not self.is_difference.any():
            return first
        # A channel that is zero throughout a window is not known there, and no difference to it is.
        is_known = x_BST.ne(0).any(-1, keepdim=True)
        second = torch.where(self.is_difference, x_BST[:, self.minus], 0)
        both = is_known[:, self.plus] & (is_known[:, self.minus] | ~self.is_difference)
        return torch.where(both, first - second, 0)


def _split_difference(name: str, available: Sequence[str]) -> tuple[str, str]:
    """Split `A-B` into its electrodes; what is the name of one, as `EEG Fp1-REF`, is not split."""
    first, dash, second = name.partition("-")
    names = {canonicalize_channel_name(each).casefold() for each in available}
    if not dash or canonicalize_channel_name(name).casefold() in names:
        return name, ""
    return first, second


def _find(name: str, available: Sequence[str], wanted: Sequence[str]) -> int:
    folded = [canonicalize_channel_name(each).casefold() for each in available]
    key = canonicalize_channel_name(name).casefold()
    if key not in folded:
        raise ConfigError(
            f"model.eeg.channels wants {', '.join(wanted)}, but there is no {name.strip()}; there are "
            f"{', '.join(available)}"
        )
    return folded.index(key)


class Braindecode(Encoder):
    """EEG windows to what a network of braindecode makes of them before its last layer.

    Tokens lie in time where the network keeps it, else there is one. The head is the network's own last layer, so that
    alone it is braindecode's network; those that were trained without labels (CBraMod, Labram, BIOT, EEGPT, EEGDINO,
    SignalJEPA) get means over electrodes for tokens and a linear head. Batch normalisation goes by whatever is in the
    batch.

    Args:
        name: Of the class in braindecode.models.
        n_stored_channels, names: Of the stored windows.
        n_stored_times, stored_hz: Samples of a stored window, and their rate.
        n_outputs: Of the network's last layer.
        from_weights: Whether published weights will be put in.
        hz, scale, unit_uv, channels, settings, width: Keys of the section.
    Raises:
        ConfigError: There is no such network, or it cannot read such windows.
    """

    def __init__(
        self,
        name: str,
        *,
        n_stored_channels: int,
        names: tuple[str, ...],
        n_stored_times: int,
        stored_hz: int,
        n_outputs: int,
        from_weights: bool,
        hz: int,
        scale: str,
        unit_uv: float,
        channels: tuple[str, ...],
        settings: dict[str, Any],
        width: int,
    ) -> None:
        super().__init__()
        self.name, self.scale, self.unit_uv, self.settings = name, scale, unit_uv, settings
        self.stored_hz, self.hz = stored_hz, hz or stored_hz
        self.standardises_channels = scale in ("", "standardised")
        self.derive = Derivation(channels, names, n_stored_channels)
        self.n_times = math.ceil(n_stored_times * self.hz / stored_hz)
        signals = Signals(self.derive.names, len(self.derive.plus), self.n_times, self.hz, n_outputs)
        network = build_network(name, settings, signals, aligned=from_weights)
        self.network, self.layout, self.width = network.body, network.layout, network.width
        if width not in (0, self.width):
            raise ConfigError(f"model.eeg.width is {width}, but {name} makes {self.width}; leave it out")
        self._own_head = (network.head,)  # not a part of the encoder
        self.register_buffer("times_s", network.times_s, persistent=False)

    def build_head(self, n_outputs: int) -> nn.Module:
        (last_layer,) = self._own_head
        if last_layer is None:
            return super().build_head(n_outputs)
        return OwnHead(last_layer, self.layout)

    def enable_gradient_checkpointing(self) -> None:
        raise ConfigError(
            "runtime.gradient_checkpointing is true, which networks of braindecode cannot do; set it to false"
        )

    def compute_features(self, x: Tensor) -> Features:
        return compute_signal_features(x)

    def forward(self, x_BST: Tensor, present_B: Tensor, subject: SubjectStatistics | None = None) -> EncoderOutput:
        """
        Args:
            x_BST: EEG in microvolts, standardised, or as `subject` is of, (batch, channels, samples).
            present_B: True where the window has EEG.
        """
        if subject is not None:
            x_BST = self.normalise_features(x_BST, subject).values.transpose(1, 2)
        tokens = self.layout.to_tokens(self.network(self.prepare_signals(x_BST)))
        return self.build_output(tokens, tokens.mean(1), present_B)

    def prepare_signals(self, x_BST: Tensor) -> Tensor:
        """Bring stored channels to those, the rate and the scale that the network reads."""
        x_BST = self.derive(x_BST)
        if self.hz != self.stored_hz:
            from torchaudio.functional import resample

            x_BST = resample(x_BST, self.stored_hz, self.hz)
        match self.scale:
            case "microvolts":
                return x_BST / self.unit_uv
            case "quantile":
                level = torch.quantile(x_BST.float().abs(), QUANTILE, dim=-1, keepdim=True)
                return x_BST / (level + 1e-8)
        return x_BST

    def load_pretrained(self, weights: str) -> None:
        key = "model.eeg.weights"
        state, published = read_weights(weights, key)
        expected = [ExpectedSetting("sfreq", self.hz, "model.eeg.hz")] if published.get("sfreq") else []
        check_settings(published, expected, key, weights)
        network: Any = getattr(self.network, "network", self.network)
        left_out = (*LEFT_OUT, *LEFT_OUT_ALIGNED.get(self.name, ()))
        if self.name == "EEGPT":
            state["chans_id"] = network.chans_id  # which electrodes are read here
        if self.name == "SignalJEPA" and self.settings.get("channel_embedding") == "scratch":
            self._choose_places(network, state, published)
        if self.name == "Labram" and "temporal_embedding" in state:
            # Of the times of longer windows the first are taken, as its authors do.
            state["temporal_embedding"] = state["temporal_embedding"][:, : network.temporal_embedding.shape[1]]
        load_tensors(network, state, key, weights, left_out)

    def _choose_places(self, network: Any, state: dict[str, Tensor], published: dict[str, Any]) -> None:
        """Take what weights know of the electrodes read here; what they know of none follows from their places."""
        key = "pos_encoder.pos_encoder_spat.weight"
        if key not in state:
            state[key] = network.state_dict()[key]
            return
        wanted, names = self.derive.names, [str(each["ch_name"]) for each in published.get("chs_info") or []]
        state[key] = state[key][[_find(name, names, wanted) for name in wanted]]


def build(section: BraindecodeConfig, preprocessing: Preprocessing, shapes: DataShapes) -> Braindecode:
    """Build the encoder that a section of an experiment describes."""
    return Braindecode(
        n_stored_channels=shapes.eeg_channels,
        names=shapes.eeg_channel_names,
        n_stored_times=preprocessing.eeg.hz * preprocessing.window_s,
        stored_hz=preprocessing.eeg.hz,
        n_outputs=shapes.n_outputs,
        from_weights=bool(section.weights),
        **collect_module_arguments(section),
    )

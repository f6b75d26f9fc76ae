"""Make networks of braindecode, and find out what they make of a window: tokens, their clock, a head of their own."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eav_ray.config.encoders.braindecode import DATA_ARGUMENTS, OTHER_ARGUMENTS, PUBLISHED_INPUTS
from eav_ray.config.extras import require_extra
from eav_ray.electrodes import load_standard_montage
from eav_ray.errors import ConfigError, suggest_nearest

HEAD = "final_layer"  # what braindecode calls the last layer of each network
CHANNELS_FIRST = ("BDTCN", "BrainModule", "TCFormer")  # whose features are (batch, width, time)
# They fetch tables of electrodes from a hub whenever they are made.
FETCHING = ("REVE", "STEEGFormer")


class Passthrough(nn.Module):
    """Return what comes first."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return x


class TokenLayout(NamedTuple):
    """How the features of a network become tokens, and tokens features."""

    to_tokens: Callable[[Tensor], Tensor]  # features to (batch, n, width)
    to_features: Callable[[Tensor], Tensor]


class EEGNetwork(NamedTuple):
    """A network of braindecode in two parts.

    Attributes:
        body: From windows to features.
        layout: Of its features.
        head: From features to what the whole network gives; None where the tokens are means over electrodes.
        times_s: (n,) where each token lies, seconds.
        width: Of the tokens.
    """

    body: nn.Module
    layout: TokenLayout
    head: nn.Module | None
    times_s: Tensor
    width: int


@dataclass(frozen=True)
class Signals:
    """What a network must know of the windows that it reads.

    Attributes:
        names: Of the electrodes; empty where nobody knows them.
        n_channels: Of the windows.
        n_times: Samples of a window.
        hz: Their rate.
        n_outputs: Of the last layer.
    """

    names: tuple[str, ...]
    n_channels: int
    n_times: int
    hz: float
    n_outputs: int


def build_network(name: str, settings: dict[str, Any], signals: Signals, *, aligned: bool = False) -> EEGNetwork:
    """Make a network of braindecode with random weights.

    Args:
        name: Of its class.
        settings: Arguments of the class that data do not decide.
        aligned: Whether published weights will be put in, whose electrodes the network is to look up by their names.
    Raises:
        ConfigError: braindecode is not installed, has no such network or argument, or cannot make it for such windows.
    """
    import mne

    # Its remarks, as that electrodes are not all that it knows, are no news to anybody here.
    with warnings.catch_warnings(), mne.utils.use_log_level("ERROR"):
        warnings.simplefilter("ignore")
        # Inside, its networks are made on the CPU: where only arithmetic is counted they would read values of tensors.
        device = torch.get_default_device()
        with torch.device("cpu"):
            network = _make_network(name, settings, signals, aligned=aligned)
            found = _divide_foundation(name, network, signals) or _divide(name, network, signals)
        for module in (found.body, found.head):
            if module is not None:
                module.to(device)
        return found._replace(times_s=found.times_s.to(device))


def import_networks() -> dict[str, Any]:
    """Import the classes of braindecode's networks, by name.

    It takes seconds, in every process that a search or a group starts; not all of them need one.

    Raises:
        ConfigError: braindecode is not installed.
    """
    require_extra("braindecode", "model.eeg.kind=braindecode", {"braindecode": "braindecode"}, "use another kind")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that it imports
        from braindecode.models.util import models_dict
    return models_dict


def _make_network(name: str, settings: dict[str, Any], signals: Signals, *, aligned: bool) -> Any:
    networks = import_networks()
    if name not in networks:
        raise ConfigError(
            f"model.eeg.name is {name!r}, which braindecode does not have{suggest_nearest(name, list(networks))}"
        )
    if name in FETCHING:
        raise ConfigError(f"model.eeg.name is {name}, which fetches files whenever it is made; jobs never fetch")
    network_class = networks[name]
    parameters = inspect.signature(network_class.__init__).parameters
    allowed = [p for p in parameters if p not in ("self", "kwargs", *DATA_ARGUMENTS, *OTHER_ARGUMENTS) and p[0] != "_"]
    if unknown := sorted(set(settings) - set(allowed)):
        nearest = suggest_nearest(unknown[0], allowed)
        raise ConfigError(
            f"model.eeg.settings has {unknown[0]}, which {name} does not take; it takes {', '.join(allowed)}{nearest}"
        )
    arguments = {key: _parse_argument(key, value) for key, value in settings.items()}
    if aligned and name in PUBLISHED_INPUTS and PUBLISHED_INPUTS[name].electrodes == "named":
        arguments |= _align_electrodes(name, settings, signals)
    patch = settings.get("patch_size", _get_default(parameters, "patch_size"))
    if isinstance(patch, int) and "patch_stride" not in parameters and signals.n_times % patch:
        raise ConfigError(
            f"{name} reads pieces of {patch} samples, but a window has {signals.n_times} at {signals.hz:g} Hz; set "
            "preprocessing.window_s or model.eeg.hz so that they divide it"
        )
    try:
        network = network_class(
            n_outputs=signals.n_outputs,
            n_chans=signals.n_channels,
            n_times=signals.n_times,
            sfreq=signals.hz,
            chs_info=_describe_electrodes(signals.names),
            **arguments,
        )
    except Exception as error:  # of any kind: sixty networks check their arguments each in their own way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"braindecode cannot make {name} of these windows and settings: {reason}") from None
    return network.eval()


def _align_electrodes(name: str, settings: dict[str, Any], signals: Signals) -> dict[str, Any]:
    """Have a network look its electrodes up by name; list the arguments of its class that do so."""
    if not signals.names:
        raise ConfigError(
            f"{name} looks electrodes up by name, and nobody knows those of these shards; preprocess anew"
        )
    if name == "EEGPT":
        from braindecode.models.eegpt import CHANNEL_DICT

        # It would count through those that it does not know.
        if unknown := [each for each in signals.names if each.upper() not in CHANNEL_DICT]:
            raise ConfigError(
                f"EEGPT does not know {', '.join(unknown)}; name those that it knows by model.eeg.channels: "
                f"{', '.join(CHANNEL_DICT)}"
            )
        return {"chan_proj_type": "none"}
    if name == "SignalJEPA":
        return {"channel_embedding": settings.get("channel_embedding", "pretrain_aligned")}
    return {}


def _get_default(parameters: Any, name: str) -> Any:
    return parameters[name].default if name in parameters else None


def _parse_argument(key: str, value: Any) -> Any:
    """Find the layer of torch that a setting names; other values stay as they are."""
    if isinstance(value, list):
        return tuple(_parse_argument(key, item) for item in value)
    layer = getattr(nn, value, None) if isinstance(value, str) else None
    is_layer = isinstance(layer, type) and issubclass(layer, nn.Module)
    return layer if is_layer else value


def _describe_electrodes(names: Sequence[str]) -> list[dict[str, Any]] | None:
    """Describe electrodes as MNE does, with their places where these are known."""
    if not names:
        return None
    import mne

    info = mne.create_info(list(names), 100.0, "eeg")
    info.set_montage(load_standard_montage(), match_case=False, on_missing="ignore")
    return info["chs"]


def _run(network: nn.Module, x: Tensor, name: str) -> Tensor:
    state = torch.random.get_rng_state()  # a few draw numbers when they predict, too
    try:
        with torch.no_grad():
            return network(x)
    except Exception as error:  # as above
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{name} of braindecode cannot read such windows: {reason}") from None
    finally:
        torch.random.set_rng_state(state)


def _divide(name: str, network: Any, signals: Signals) -> EEGNetwork:
    """Divide a network before its last layer; where that is not the last step, its outputs are its features."""
    last: nn.Module = getattr(network, HEAD, None) or nn.Identity()
    inputs: list[Any] = []
    outputs: list[Any] = []

    def note(_: nn.Module, given: Any, made: Any) -> None:
        inputs.append(given)
        outputs.append(made)

    hook = last.register_forward_hook(note)
    x = torch.randn(2, signals.n_channels, signals.n_times, generator=torch.Generator().manual_seed(0))
    found = _run(network, x, name)
    hook.remove()
    if not isinstance(found, Tensor) or found.shape != (2, signals.n_outputs):
        raise ConfigError(
            f"model.eeg.name is {name}, which gives no {signals.n_outputs} values for a window; use a network that "
            "names a class, such as EEGNet"
        )
    if not found.isfinite().all():
        raise ConfigError(
            f"{name} makes values of such windows that are not finite; it may need electrodes of the 10-05 system, and "
            f"these are {', '.join(signals.names) or 'without names'}"
        )
    whole = outputs[-1] if len(outputs) == 1 and len(inputs[0]) == 1 else None
    if not isinstance(whole, Tensor) or not torch.equal(whole, found) or type(last) is nn.Identity:
        head, features = nn.Identity(), found
    else:
        head, features = last, inputs[0][0]
        setattr(network, HEAD, Passthrough())
    layout = _choose_layout(name, features.shape)
    tokens = layout.to_tokens(features)
    assert torch.equal(layout.to_features(tokens), features)
    times_s = _measure_clock(network, layout, tokens.shape[1], signals)
    return EEGNetwork(network, layout, head, times_s, tokens.shape[2])


def _choose_layout(name: str, shape: torch.Size) -> TokenLayout:
    if len(shape) == 4 and shape[2] == 1:
        return TokenLayout(lambda f: f[:, :, 0].transpose(1, 2), lambda t: t.transpose(1, 2)[:, :, None])
    if len(shape) == 4 and shape[3] == 1:
        return TokenLayout(lambda f: f[..., 0].transpose(1, 2), lambda t: t.transpose(1, 2)[..., None])
    if len(shape) == 3 and name in CHANNELS_FIRST:
        return TokenLayout(lambda f: f.transpose(1, 2), lambda t: t.transpose(1, 2))
    return TokenLayout(lambda f: f.flatten(1)[:, None], lambda t: t[:, 0].unflatten(1, shape[1:]))


def _measure_clock(network: nn.Module, layout: TokenLayout, n_tokens: int, signals: Signals) -> Tensor:
    """Measure which samples the tokens of a convolutional network see: (tokens,) the middle of each, seconds.

    What a sample that is no number reaches is no number. Where all tokens see the whole window, as after attention,
    they lie evenly over it.
    """
    window_s = signals.n_times / signals.hz
    spread_s = (torch.arange(n_tokens) + 0.5) * window_s / n_tokens
    if n_tokens in (1, signals.n_times):
        return spread_s

    def is_reached(tokens: Sequence[int], starts: Sequence[int], ends: Sequence[int]) -> list[bool]:
        x = torch.zeros(len(tokens), signals.n_channels, signals.n_times)
        for row, start, end in zip(x, starts, ends, strict=True):
            row[:, start:end] = torch.nan
        with torch.no_grad():
            found = layout.to_tokens(network(x))
        return [bool(found[row, token].isnan().any()) for row, token in enumerate(tokens)]

    n = signals.n_times
    # The first samples behind what the first two tokens see, and the first one that the last token sees.
    tokens, low, high = (0, 1, n_tokens - 1), [0, 0, 0], [n, n, n]
    while any(h - lo > 1 for lo, h in zip(low, high, strict=True)):
        middle = [(lo + h) // 2 for lo, h in zip(low, high, strict=True)]
        reached = is_reached(tokens, [middle[0], middle[1], 0], [n, n, middle[2]])
        for k, rises in enumerate((reached[0], reached[1], not reached[2])):
            (low if rises else high)[k] = middle[k]
    first_end, second_end, last_begin = high[0], high[1], low[2]
    step = second_end - first_end
    length = first_end - (last_begin - step * (n_tokens - 1))
    if step <= 0 or length <= 0:
        return spread_s
    middles = first_end - length / 2 + step * torch.arange(n_tokens)
    return (middles / signals.hz).clamp(0, window_s)


class FoundationBody(nn.Module):
    """A network that was trained on much EEG without labels, up to its tokens: means over electrodes, in time.

    Args:
        names: Of the electrodes.
    """

    def __init__(self, name: str, network: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.name, self.network, self.names = name, network, list(names)

    def forward(self, x_BST: Tensor) -> Tensor:
        """(batch, electrodes, samples) to (batch, tokens, width)."""
        n_channels = x_BST.shape[1]
        if self.name == "BIOT":
            return self._encode_biot(x_BST, n_channels)
        if self.name == "Labram":
            tokens = self.network(x_BST, return_features=True, ch_names=self.names)["features"]
        else:
            tokens = self.network(x_BST, return_features=True)["features"]
        if self.name == "EEGPT":  # its summaries of each piece of time, of all electrodes
            return tokens
        if tokens.ndim == 3:
            tokens = tokens.unflatten(1, (n_channels, -1))
        return tokens.mean(1)

    def _encode_biot(self, x_BST: Tensor, n_channels: int) -> Tensor:
        """Take the transformer's outputs, of which the network gives the mean alone."""
        found: list[Tensor] = []
        hook = self.network.encoder.transformer.register_forward_hook(lambda _, __, output: found.append(output))
        try:
            self.network(x_BST, return_features=True)
        finally:
            hook.remove()
        return found[0].unflatten(1, (n_channels, -1)).mean(1)


def _divide_foundation(name: str, network: Any, signals: Signals) -> EEGNetwork | None:
    """Take the tokens of a network that was trained without labels; None for others."""
    place = _locate_foundation_tokens(name, network)
    if place is None:
        return None
    if name == "SignalJEPA":
        network.transformer.decoder = nn.Identity()  # of its training alone
    setattr(network, HEAD, Passthrough())
    body = FoundationBody(name, network, signals.names)
    x = torch.randn(1, signals.n_channels, signals.n_times, generator=torch.Generator().manual_seed(0))
    tokens = _run(body, x, name)
    if not tokens.isfinite().all():
        raise ConfigError(
            f"{name} makes values of such windows that are not finite; it needs electrodes of the 10-05 system, and "
            f"these are {', '.join(signals.names) or 'without names'}"
        )
    field, step = place
    times_s = (field / 2 + step * torch.arange(tokens.shape[1])) / signals.hz
    layout = TokenLayout(lambda f: f, lambda t: t)
    return EEGNetwork(body, layout, None, times_s, tokens.shape[2])


def _locate_foundation_tokens(name: str, network: Any) -> tuple[int, int] | None:
    """Find how many samples a token is of, and from one to the next; None for other networks."""
    match name:
        case "CBraMod":
            return network._patch_size, network._patch_size
        case "EEGDINO":
            return (network.patch_embedding.patch_size,) * 2
        case "Labram":
            return network.patch_size, network.patch_size
        case "EEGPT":
            return network.patch_size, network.patch_stride or network.patch_size
        case "BIOT":
            return network.encoder.n_fft, network.encoder.hop_length
        case "SignalJEPA":
            field = step = 1
            for _, kernel, stride in network.feature_encoder.conv_layers_spec:
                field, step = field + (kernel - 1) * step, step * stride
            return field, step
    return None

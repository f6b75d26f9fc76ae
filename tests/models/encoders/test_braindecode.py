"""EEG networks of braindecode: alone they are the library's own, and published weights give what the library gives."""

import json
import socket
from pathlib import Path
from typing import Any

import mne
import pytest
import safetensors.torch
import torch
from scipy.signal import resample_poly
from torch import Tensor

from eav_ray.config import Experiment, override
from eav_ray.config.encoders.braindecode import NON_COMMERCIAL, PUBLISHED_INPUTS, BraindecodeConfig
from eav_ray.config.published import adopt_published_settings
from eav_ray.electrodes import load_standard_montage
from eav_ray.errors import ConfigError
from eav_ray.models.encoders.base import DataShapes, compute_unimodal_logits
from eav_ray.models.encoders.braindecode import Braindecode
from eav_ray.models.encoders.braindecode_networks import import_networks
from eav_ray.models.encoders.factory import build_encoder
from eav_ray.pipelines.train.workload import list_licence_warnings

models_dict = import_networks()
NAMES = (
    "Fp1",
    "Fp2",
    "F7",
    "F3",
    "Fz",
    "F4",
    "F8",
    "T7",
    "C3",
    "Cz",
    "C4",
    "T8",
    "P7",
    "P3",
    "Pz",
    "P4",
    "P8",
    "O1",
    "O2",
)
HZ, WINDOW_S, CLASSES = 200, 5, 5
PRESENT = torch.ones(2, dtype=torch.bool)
# What needs other windows than these, or says nothing of a window, in the library's words or ours.
REFUSED = {
    "AttnSleep": "feature extractor returns",
    "BENDR": "specific order",
    "DANCE": "gives no 5 values for a window",
    "EMG2QwertyNet": "expects n_chans",
    "MetaNeuromotorHand": "frequency band",
    "NeuroPose": "gives no 5 values for a window",
    "REVE": "fetches files whenever it is made",
    "STEEGFormer": "fetches files whenever it is made",
    "SensingDynamics": "16-channel",
    "SleepStagerBlanco2020": "divisible by groups",
    "USleep": "must be an odd number",
    "VEMG2Pose": "left context",
    "ZUNA": "not divisible by patch_size",
}
HUGE = ("BrainModule", "DeepSleepNet")  # a thousand tokens, a hundred million weights
FOUNDATIONS = tuple(PUBLISHED_INPUTS)
OTHERS = [name for name in models_dict if name not in {*REFUSED, *HUGE, *FOUNDATIONS}]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection: no network may be fetched by being made."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a network was reached for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    torch.manual_seed(0)


def make_experiment(name: str, **changes: Any) -> Experiment:
    keys = {"preprocessing.eeg.hz": HZ, "data.modalities": ["eeg"]}
    return override(Experiment(), keys | {"model.eeg": {"kind": "braindecode", "name": name} | changes})


def build_braindecode(name: str, *, names: tuple[str, ...] = NAMES, stored_hz: int = HZ, **changes: Any) -> Braindecode:
    """Build the encoder as a job does, with published weights where there are any."""
    e = override(make_experiment(name, **changes), {"preprocessing.eeg.hz": stored_hz})
    encoder = build_encoder(adopt_published_settings(e), "eeg", DataShapes(len(names), CLASSES, names))
    assert isinstance(encoder, Braindecode)
    if weights := changes.get("weights"):
        encoder.load_pretrained(str(weights))
    return encoder.eval()


def make_library_network(name: str, names: tuple[str, ...] = NAMES, hz: int = HZ, **arguments: Any) -> Any:
    info = mne.create_info(list(names), float(hz), "eeg")
    info.set_montage(load_standard_montage())
    keys = {"n_outputs": CLASSES, "n_chans": len(names), "n_times": WINDOW_S * hz, "sfreq": hz, "chs_info": info["chs"]}
    return models_dict[name](**(keys | arguments)).eval()


def make_windows(n_channels: int = len(NAMES), hz: int = HZ) -> Tensor:
    return torch.randn(2, n_channels, WINDOW_S * hz)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.filterwarnings("ignore")
def test_alone_a_network_is_the_librarys_own(name: str) -> None:
    encoder = build_braindecode(name)
    head, x = encoder.build_head(CLASSES).eval(), make_windows()
    torch.manual_seed(0)
    network = make_library_network(name)
    with torch.no_grad():
        encoded = encoder(x, PRESENT)
        expected, found = network(x), compute_unimodal_logits(head, encoded)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert encoded.tokens_BND.shape == (2, len(encoder.times_s), encoder.width)
    assert encoder.times_s.ge(0).all() and encoder.times_s.le(WINDOW_S).all() and encoder.times_s.diff().gt(0).all()
    trained = {*map(id, encoder.parameters()), *map(id, head.parameters())}
    assert len(trained) == len(list(network.parameters()))  # nothing twice, nothing forgotten


def compute_library_tokens(name: str, network: Any, x: Tensor, names: tuple[str, ...]) -> Tensor:
    """Compute the library's features of a window, means over electrodes in time."""
    with torch.no_grad():
        keys = {"ch_names": list(names)} if name == "Labram" else {}
        features = network(x, return_features=True, **keys)["features"]
    if name in ("EEGPT", "BIOT"):
        return features
    return (features if features.ndim == 4 else features.unflatten(1, (len(names), -1))).mean(1)


ARGUMENTS = {  # of the library's networks, small where they can be
    "BIOT": {"embed_dim": 32, "num_layers": 2},
    "CBraMod": {"n_layer": 2},
    "EEGDINO": {"n_layer": 2},
    "EEGPT": {"depth": 1, "embed_dim": 64, "chan_proj_type": "none"},
    "Labram": {"num_layers": 2},
    "SignalJEPA": {"transformer__num_encoder_layers": 2, "channel_embedding": "pretrain_aligned"},
}
RATES = {"EEGPT": 256, "SignalJEPA": 128}
# Those that SignalJEPA and EEGPT know, in another order than the windows'.
SAVED_NAMES = NAMES[::-1]


def save_foundation(name: str, folder: Path, names: tuple[str, ...] = SAVED_NAMES) -> Any:
    """Save a network with random weights as braindecode does for a hub, beside a pickle that must not be read."""
    network = make_library_network(name, names, RATES.get(name, HZ), **ARGUMENTS[name])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.rand_like(parameter))
    network.save_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    return network


def load_foundation(name: str, folder: Path, **changes: Any) -> Braindecode:
    unit = {"unit_uv": 1000.0} if name == "EEGPT" else {}
    return build_braindecode(name, weights=str(folder), stored_hz=RATES.get(name, HZ), **(unit | changes))


foundations = pytest.mark.parametrize("name", FOUNDATIONS)


@foundations
@pytest.mark.filterwarnings("ignore")
def test_published_weights_give_what_the_library_gives_whatever_the_order_of_electrodes(
    name: str, tmp_path: Path
) -> None:
    network = save_foundation(name, tmp_path)
    encoder = load_foundation(name, tmp_path)
    known = PUBLISHED_INPUTS[name]
    assert encoder.hz == RATES.get(name, HZ) and encoder.scale == known.scale
    x_uv = 30 * make_windows(hz=encoder.hz)
    level = torch.quantile(x_uv.abs(), 0.95, dim=-1, keepdim=True)
    unit = {"microvolts": known.unit_uv or 1000.0, "quantile": level}[known.scale]
    order = [NAMES.index(each) for each in SAVED_NAMES]
    expected = compute_library_tokens(name, network, (x_uv / unit)[:, order], SAVED_NAMES)
    with torch.no_grad():
        encoded = encoder(x_uv, PRESENT)
    found = encoded.pooled_BD if name == "BIOT" else encoded.tokens_BND
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not encoder.standardises_channels
    assert encoded.tokens_BND.shape == (2, len(encoder.times_s), encoder.width)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("has_places", [True, False])
def test_places_of_electrodes_follow_the_electrodes(has_places: bool, tmp_path: Path) -> None:
    arguments = ARGUMENTS["SignalJEPA"] | {"channel_embedding": "scratch"}
    network = make_library_network("SignalJEPA", SAVED_NAMES, 128, **arguments)
    key = "pos_encoder.pos_encoder_spat.weight"
    with torch.no_grad():
        network.state_dict()[key].add_(torch.rand(len(NAMES), 30) * has_places)
    network.save_pretrained(tmp_path)
    if not has_places:  # as one of the two that are published
        file = tmp_path / "model.safetensors"
        safetensors.torch.save_file({n: t for n, t in safetensors.torch.load_file(file).items() if n != key}, file)
    encoder, x = load_foundation("SignalJEPA", tmp_path), make_windows(hz=128)
    order = [NAMES.index(each) for each in SAVED_NAMES]
    expected = compute_library_tokens("SignalJEPA", network, x[:, order], SAVED_NAMES)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x, PRESENT).tokens_BND, expected, rtol=1e-4, atol=1e-5)


@foundations
@pytest.mark.filterwarnings("ignore")
def test_a_renamed_missing_or_misshapen_tensor_is_refused(name: str, tmp_path: Path) -> None:
    save_foundation(name, tmp_path)
    file = tmp_path / "model.safetensors"
    state = safetensors.torch.load_file(file)
    victim = next(n for n in state if n.endswith("weight") and not n.startswith(("final_layer", "chan_proj")))
    tensor = state.pop(victim)
    for changed, words in (
        ({"other": tensor}, "which has other, for which this encoder has no place"),
        ({}, f"which has no tensor {victim}"),
        ({victim: torch.zeros(3, 3, 3)}, f"where {victim} is"),
        ({victim: torch.full_like(tensor, torch.nan)}, "not finite"),
    ):
        safetensors.torch.save_file(state | changed, file)
        with pytest.raises(ConfigError, match=words):
            load_foundation(name, tmp_path)


@foundations
@pytest.mark.filterwarnings("ignore")
def test_another_rate_scale_or_setting_than_the_weights_is_refused(name: str, tmp_path: Path) -> None:
    save_foundation(name, tmp_path)
    rate = RATES.get(name, HZ)
    with pytest.raises(ConfigError, match=rf"model\.eeg\.hz is 100, but the config\.json .* makes it {rate}"):
        load_foundation(name, tmp_path, hz=100)
    with pytest.raises(ConfigError, match=r"model\.eeg\.settings is .*, but the config\.json"):
        load_foundation(name, tmp_path, settings={"drop_prob": 0.7})
    e = override(make_experiment(name, weights=str(tmp_path), unit_uv=3.0), {"preprocessing.eeg.hz": 100})
    if name == "EEGPT":  # nobody says its unit
        with pytest.raises(ConfigError, match=r"hz=256 or more"):
            check_experiment(adopt_published_settings(e))
        with pytest.raises(ConfigError, match="nothing says in what unit EEGPT was trained"):
            adopt_published_settings(make_experiment(name, weights=str(tmp_path)))
    else:
        with pytest.raises(ConfigError):
            adopt_published_settings(e)
        stored = override(make_experiment(name, weights=str(tmp_path)), {"preprocessing.eeg.hz": 100})
        with pytest.raises(ConfigError, match=rf"reads {rate} Hz .*, but windows are stored at 100; set"):
            check_experiment(adopt_published_settings(stored))


def check_experiment(experiment: Experiment) -> None:
    """Raise what loading an experiment raises."""
    if problems := experiment.model["eeg"].find_problems(experiment.preprocessing):
        raise ConfigError("; ".join(problems))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["BIOT", "EEGDINO"])
def test_an_electrode_that_the_weights_want_and_windows_lack_is_refused(name: str, tmp_path: Path) -> None:
    save_foundation(name, tmp_path)
    with pytest.raises(ConfigError, match=r"wants O2, .*, but there is no O2; there are Fp1"):
        load_foundation(name, tmp_path, names=NAMES[:-1])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"chs_info": None}))
    with pytest.raises(ConfigError, match=r"names no electrodes \(chs_info\); set model\.eeg\.channels"):
        load_foundation(name, tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_a_network_that_takes_any_electrodes_takes_those_of_the_experiment(tmp_path: Path) -> None:
    network = save_foundation("CBraMod", tmp_path)
    encoder, x = load_foundation("CBraMod", tmp_path, channels=["Cz", "c3", "O2"]), make_windows()
    order = [NAMES.index(name) for name in ("Cz", "C3", "O2")]
    expected = compute_library_tokens("CBraMod", network, x[:, order] / 100, ("Cz", "C3", "O2"))
    with torch.no_grad():
        torch.testing.assert_close(encoder(x, PRESENT).tokens_BND, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["SignalJEPA", "EEGPT", "Labram"])
def test_an_electrode_that_a_network_does_not_know_by_name_is_refused(name: str, tmp_path: Path) -> None:
    save_foundation(name, tmp_path)
    with pytest.raises(ConfigError, match="AFp3h|AFP3H|afp3h"):
        load_foundation(name, tmp_path, names=(*NAMES[:-1], "AFp3h"))


@pytest.mark.filterwarnings("ignore")
def test_differences_of_electrodes_are_made_and_unknown_ones_stay_unknown(tmp_path: Path) -> None:
    names = ("FP1-F7", "F7-T7", "T7-P7")
    info = mne.create_info(list(names), float(HZ), "eeg")
    network = models_dict["BIOT"](
        n_outputs=2, n_chans=3, n_times=1000, sfreq=HZ, chs_info=info["chs"], **ARGUMENTS["BIOT"]
    ).eval()
    network.save_pretrained(tmp_path)
    encoder, x = load_foundation("BIOT", tmp_path), make_windows()
    x[1, NAMES.index("F7")] = 0
    index = {name.upper(): k for k, name in enumerate(NAMES)}
    difference = torch.stack([x[:, index[a]] - x[:, index[b]] for a, b in (n.split("-") for n in names)], 1)
    difference[1, :2] = 0  # of F7 nothing is known there
    level = torch.quantile(difference.abs(), 0.95, dim=-1, keepdim=True)
    with torch.no_grad():
        expected = network(difference / (level + 1e-8), return_features=True)["features"]
        torch.testing.assert_close(encoder(x, PRESENT).pooled_BD, expected, rtol=1e-4, atol=1e-5)


def test_windows_are_resampled_to_the_rate_that_a_network_reads() -> None:
    e = override(make_experiment("ShallowFBCSPNet", hz=HZ), {"preprocessing.eeg.hz": 500})
    built = build_encoder(e, "eeg", DataShapes(2, CLASSES, ("C3", "C4")))
    assert isinstance(built, Braindecode) and built.n_times == 1000
    t = torch.arange(2500, dtype=torch.float64) / 500
    x = torch.stack([torch.sin(2 * torch.pi * f * t + 1) for f in (7, 31)])[None].float()
    found = built.prepare_signals(x)
    expected = torch.from_numpy(resample_poly(x.numpy(), 2, 5, axis=-1))
    inside = slice(50, -50)
    torch.testing.assert_close(found[..., inside], expected[..., inside], rtol=0, atol=5e-3)


def test_tokens_of_a_convolutional_network_lie_where_they_look() -> None:
    encoder = build_braindecode("ShallowFBCSPNet")
    # 25 samples, then means of 75 every 15: 99 samples to a token.
    expected = (99 / 2 + 15 * torch.arange(len(encoder.times_s))) / HZ
    torch.testing.assert_close(encoder.times_s, expected, rtol=0, atol=2 / HZ)
    deeper = build_braindecode("Deep4Net")
    middle = len(deeper.times_s) // 2
    x = make_windows()
    changed = x.clone()
    place = int(deeper.times_s[middle] * HZ)
    changed[..., place - 5 : place + 5] += 10
    with torch.no_grad():
        moved = (deeper(x, PRESENT).tokens_BND - deeper(changed, PRESENT).tokens_BND).abs().sum((0, 2))
    assert int(moved.argmax()) in (middle - 1, middle, middle + 1) and moved[0] == 0 == moved[-1]


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_what_gives_no_class_of_such_windows_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[name]) as refused:
        build_braindecode(name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "EEGNett"}, "which braindecode does not have; did you mean .EEGNet."),
        ({"settings": {"f1": 3}}, r"settings has f1, which EEGNet does not take; .* did you mean .F1."),
        ({"settings": {"F1": -3}}, "cannot make EEGNet of these windows and settings"),
        ({"width": 3}, "width is 3, but EEGNet makes 16; leave it out"),
        ({"channels": ["C3", "c3"]}, "names an electrode twice"),
        ({"channels": ["Iz"]}, "there is no Iz"),
    ],
)
def test_what_cannot_be_made_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_braindecode(**({"name": "EEGNet"} | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"settings": {"n_chans": 3}}, "settings has n_chans, which windows and classes decide"),
        ({"settings": {"return_features": True}}, "settings has return_features"),
        ({"unit_uv": 100.0}, "no effect without scale=microvolts"),
        ({"channels": ["Fp1-F7"]}, "a difference, which standardised channels do not have"),
    ],
)
def test_contradictory_keys_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_experiment("EEGNet", **changes)


@pytest.mark.filterwarnings("ignore")
def test_layers_of_torch_are_taken_by_name_and_nothing_else_is_imported(tmp_path: Path) -> None:
    encoder = build_braindecode("EEGNet", settings={"activation": "ReLU", "F1": 4})
    assert any(type(m) is torch.nn.ReLU for m in encoder.modules())
    network = make_library_network("EEGNet", activation=torch.nn.ReLU)
    network.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"nothing says what they read; set model\.eeg\.scale"):
        build_braindecode("EEGNet", weights=str(tmp_path))
    loaded = build_braindecode("EEGNet", weights=str(tmp_path), scale="standardised")
    x = make_windows()
    features: list[Tensor] = []
    network.final_layer.register_forward_hook(lambda _, given, __: features.append(given[0]))
    with torch.no_grad():
        network(x)
        found = loaded.layout.to_features(loaded(x, PRESENT).tokens_BND)
    torch.testing.assert_close(found, features[0], rtol=1e-5, atol=1e-6)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"activation": "antigravity.Fly"}))
    with pytest.raises(ConfigError, match=r"sets activation to antigravity\.Fly; layers of torch\.nn alone"):
        build_braindecode("EEGNet", weights=str(tmp_path), scale="standardised")
    (tmp_path / "config.json").write_text(json.dumps(config | {"sfreq": None}))
    with pytest.raises(ConfigError, match=r"does not name their rate \(sfreq\); set model\.eeg\.hz"):
        build_braindecode("EEGNet", weights=str(tmp_path), scale="standardised")


def test_terms_that_forbid_commercial_use_are_those_of_the_library_and_are_said() -> None:
    licences = {name: network._hub_mixin_info.model_card_data.license for name, network in models_dict.items()}
    assert {name: terms for name, terms in licences.items() if "-nc" in terms} == NON_COMMERCIAL
    assert list_licence_warnings(make_experiment("EEGMiner")) == [
        "eeg: braindecode EEGMiner is licensed cc-by-nc-4.0: not for commercial use"
    ]
    assert list_licence_warnings(make_experiment("EEGNet")) == []
    assert BraindecodeConfig().name == "EEGNet"

"""Speech encoders give what transformers gives of each recording alone, from weights as a hub has them."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor

from eav_ray.config import Experiment, override
from eav_ray.config.encoders.speech import SIZE_NAMES
from eav_ray.config.published import adopt_published_settings
from eav_ray.errors import ConfigError
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes
from eav_ray.models.encoders.factory import build_encoder
from eav_ray.models.encoders.speech import Speech
from eav_ray.training.engines.base import build_parameter_groups

HZ, WIDTH, DEPTH, HEADS = 16000, 24, 3, 2
CONVOLUTIONS = {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
LARGE = CONVOLUTIONS | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
LIBRARY_NAMES = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM", "whisper": "Whisper"}
NETWORKS = {
    "wav2vec2 base": ("wav2vec2", CONVOLUTIONS),
    "wav2vec2 large": ("wav2vec2", LARGE),
    "hubert base": ("hubert", CONVOLUTIONS),
    "hubert large": ("hubert", LARGE | {"feat_proj_layer_norm": False}),
    "wavlm base": ("wavlm", CONVOLUTIONS | {"num_buckets": 40}),
    "wavlm large": ("wavlm", LARGE),
    "whisper": ("whisper", {"num_mel_bins": 128, "encoder_ffn_dim": 40}),
}
networks = pytest.mark.parametrize("network", NETWORKS)
PRESENT = torch.ones(2, dtype=torch.bool)
N_SAMPLES = (2 * HZ, 20_011)  # of a window of 2 s, and of a shorter recording


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def build_library_config(network: str) -> Any:
    architecture, settings = NETWORKS[network]
    sizes = dict(zip(SIZE_NAMES[architecture].values(), (WIDTH, DEPTH, HEADS), strict=True))
    config = getattr(transformers, f"{LIBRARY_NAMES[architecture]}Config")
    others = {"intermediate_size": 4 * WIDTH, "decoder_layers": 1, "decoder_attention_heads": 2}
    return config(**others | settings | sizes)


def save_library_model(network: str, folder: Path, head: str = "") -> Any:
    """Save a model with random weights as the library does, and return it."""
    architecture, _ = NETWORKS[network]
    model = getattr(transformers, f"{LIBRARY_NAMES[architecture]}{head or 'Model'}")(build_library_config(network))
    with torch.no_grad():
        for parameter in model.parameters():  # fresh biases and norms would hide a wrong place
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval().save_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor(128) if architecture == "whisper" else make_extractor()
    extractor.save_pretrained(folder)
    return model


def make_extractor() -> Any:
    return transformers.Wav2Vec2FeatureExtractor(do_normalize=True)


def build_speech(folder: Path, **changes: Any) -> Speech:
    """Build and load the encoder as a job does: from an experiment that names the folder alone."""
    keys = {"kind": "speech", "weights": str(folder), "frames_per_token": 1, "silence_db": 0} | changes
    e = override(Experiment(), {"data.modalities": ["audio"], "preprocessing.window_s": 2, "model.audio": keys})
    encoder = build_encoder(adopt_published_settings(e), "audio", DataShapes(1, 5))
    assert isinstance(encoder, Speech)
    encoder.load_pretrained(str(folder))
    return encoder.eval()


def make_windows() -> Tensor:
    """A full window, and one whose recording is shorter, so filled up with zeros."""
    x = 0.3 * torch.randn(2, 2 * HZ)
    x[1, N_SAMPLES[1] :] = 0
    return x


def compute_library_states(network: str, model: Any, x_T: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Compute all hidden states of one recording, and the last as the library returns it."""
    if network == "whisper":
        extract, model = transformers.WhisperFeatureExtractor(128), getattr(model, "encoder", model)
        inputs = extract([x_T.numpy()], sampling_rate=HZ, return_tensors="pt").input_features
    else:
        inputs = make_extractor()(x_T.numpy(), sampling_rate=HZ, return_tensors="pt").input_values
    with torch.no_grad():
        out = model(inputs, output_hidden_states=True)
    return out.hidden_states, out.last_hidden_state


@networks
@pytest.mark.parametrize("layers", ["mix", "last", 1, DEPTH])
def test_tokens_are_the_librarys_hidden_states_of_each_recording_alone(
    network: str, layers: str | int, tmp_path: Path
) -> None:
    model = save_library_model(network, tmp_path)
    encoder = build_speech(tmp_path, layers=layers)
    if encoder.mix is not None:
        torch.nn.init.normal_(encoder.mix)
    x = make_windows()
    with torch.no_grad():
        tokens, mask, pooled = encoder(x, PRESENT)
    for row, n in enumerate(N_SAMPLES):
        states, last = compute_library_states(network, model, x[row, :n])
        expected = states[layers] if isinstance(layers, int) else last
        if encoder.mix is not None:
            expected = torch.einsum("l,lbtd->btd", encoder.mix.detach().softmax(0), torch.stack(states))
        n_frames = -(-n // 320) if network == "whisper" else expected.shape[1]
        assert mask[row].sum() == n_frames and mask[row, :n_frames].all()
        torch.testing.assert_close(tokens[row, :n_frames], expected[0, :n_frames], rtol=0, atol=1e-5)
        torch.testing.assert_close(pooled[row], expected[0, :n_frames].mean(0), rtol=0, atol=1e-5)


def test_a_token_is_the_mean_of_the_frames_that_sound_and_lies_where_they_do(tmp_path: Path) -> None:
    save_library_model("wav2vec2 base", tmp_path)
    single, many = build_speech(tmp_path, silence_db=30), build_speech(tmp_path, silence_db=30, frames_per_token=7)
    x = make_windows()
    x[0, : HZ // 2] *= 1e-4
    with torch.no_grad():
        frames, sounds, _ = single(x, PRESENT)
        tokens, mask, _ = many(x, PRESENT)
    assert not sounds[0, : HZ // 2 // 320 - 7].any() and sounds[0, HZ // 2 // 320 :].all()
    for k in range(tokens.shape[1]):
        part = slice(7 * k, 7 * k + 7)
        torch.testing.assert_close(many.times_s[k], single.times_s[part].mean())
        for row in range(2):
            assert mask[row, k] == sounds[row, part].any()
            if mask[row, k]:
                expected = frames[row, part][sounds[row, part]].mean(0)
                torch.testing.assert_close(tokens[row, k], expected, rtol=1e-5, atol=1e-5)


@networks
def test_a_click_moves_the_frames_that_say_they_hear_it(network: str, tmp_path: Path) -> None:
    save_library_model(network, tmp_path)
    encoder = build_speech(tmp_path, normalise=True)
    x = 1e-3 * torch.randn(1, 2 * HZ)
    clicked = x.clone()
    clicked[0, int(1.3 * HZ)] = 0.02
    with torch.no_grad():  # attention spreads a click over all frames: look at what enters the first layer
        before, after = (encoder.network(each, torch.tensor([2 * HZ]))[0] for each in (x, clicked))
    moved = (after - before).norm(dim=2)[0]
    assert abs(encoder.times_s[moved.argmax()] - 1.3) <= 0.2  # which for wav2vec2 has seen 16 frames at once


@pytest.mark.parametrize(
    ("network", "head"),
    [
        ("wav2vec2 base", "ForCTC"),
        ("wav2vec2 base", "ForPreTraining"),
        ("hubert large", "ForSequenceClassification"),
        ("wavlm base", "ForSequenceClassification"),
        ("wavlm base", "ForXVector"),
        ("whisper", "ForConditionalGeneration"),
        ("whisper", "ForAudioClassification"),
    ],
)
def test_the_files_of_models_with_heads_are_taken_without_the_head(network: str, head: str, tmp_path: Path) -> None:
    model = save_library_model(network, tmp_path, head)
    body = getattr(model, NETWORKS[network][0], None)
    if network == "whisper":
        body = model.model.encoder if head == "ForConditionalGeneration" else model.encoder
    encoder, x = build_speech(tmp_path, layers="last"), make_windows()[:1]
    with torch.no_grad():
        found = encoder(x, PRESENT[:1]).tokens_BND
    _, expected = compute_library_states(network, body, x[0])
    torch.testing.assert_close(found, expected[:, : found.shape[1]], rtol=0, atol=1e-5)


def test_the_names_of_older_files_are_taken(tmp_path: Path) -> None:
    save_library_model("wav2vec2 base", tmp_path)
    encoder, x = build_speech(tmp_path), make_windows()
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    older = {
        "wav2vec2."
        + name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in state.items()
    }
    assert "wav2vec2.encoder.pos_conv_embed.conv.weight_g" in older
    safetensors.torch.save_file(older, tmp_path / "model.safetensors")
    other = build_speech(tmp_path)
    with torch.no_grad():
        assert torch.equal(encoder(x, PRESENT).tokens_BND, other(x, PRESENT).tokens_BND)


def test_a_tensor_that_is_renamed_missing_or_of_another_shape_is_refused(tmp_path: Path) -> None:
    save_library_model("hubert base", tmp_path)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    name = "encoder.layers.1.attention.k_proj.weight"
    for changed, message in (
        ({n.replace(".k_proj.", ".key."): t for n, t in state.items()}, "has no place"),
        ({n: t for n, t in state.items() if n != name}, f"has no tensor {name}"),
        (state | {name: torch.zeros(5, 5)}, rf"{name} is \(5, 5\)"),
        (state | {name: torch.full((WIDTH, WIDTH), torch.nan)}, "not finite"),
    ):
        safetensors.torch.save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(ConfigError, match=message):
            build_speech(tmp_path)


def test_weights_decide_architecture_sizes_and_settings(tmp_path: Path) -> None:
    save_library_model("wavlm large", tmp_path)
    e = override(Experiment(), {"model.audio": {"kind": "speech", "weights": str(tmp_path)}})
    section: Any = adopt_published_settings(e).model["audio"]
    assert (section.architecture, section.width, section.depth, section.heads) == ("wavlm", WIDTH, DEPTH, HEADS)
    assert section.settings.items() >= LARGE.items() and section.normalise
    again = adopt_published_settings(adopt_published_settings(e))
    assert again.model["audio"] == section


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": ["wav2vec2"]}, "names the model_type"),
        ({"model_type": "bert"}, "names the model_type bert; speech takes wav2vec2, hubert, wavlm, whisper"),
        ({"sampling_rate": 8000}, "want sound at 8000 Hz; windows are stored at 16000"),
        ({"hidden_size": None}, "does not say hidden_size"),
    ],
)
def test_weights_of_something_else_are_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_library_model("wav2vec2 base", tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text()) | changed
    settings = {name: value for name, value in settings.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    if "sampling_rate" in changed:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(changed))
    with pytest.raises(ConfigError, match=message):
        build_speech(tmp_path)


def test_a_key_that_contradicts_the_weights_is_refused(tmp_path: Path) -> None:
    save_library_model("wav2vec2 base", tmp_path)
    with pytest.raises(ConfigError, match=r"model\.audio\.depth is 7, but the config\.json of .* makes it 3; leave"):
        build_speech(tmp_path, depth=7)


def test_threads_that_share_a_model_do_not_see_each_other(tmp_path: Path) -> None:
    """Group normalisation goes by the lengths of a batch's recordings; a server predicts in several threads."""
    save_library_model("wav2vec2 base", tmp_path)
    encoder = build_speech(tmp_path)

    def encode(n_samples: int) -> Tensor:
        x = 0.3 * torch.randn(2, 2 * HZ, generator=torch.Generator().manual_seed(n_samples))
        x[:, n_samples:] = 0
        with torch.no_grad():
            return encoder(x, PRESENT).pooled_BD

    lengths = [8000 + 3000 * (k % 8) for k in range(48)]
    expected = {n: encode(n) for n in lengths[:8]}
    with ThreadPoolExecutor(4) as pool:
        for n, found in zip(lengths, pool.map(encode, lengths), strict=True):
            torch.testing.assert_close(found, expected[n], rtol=1e-4, atol=1e-5)


def test_the_normalisation_of_a_processor_of_transformers_5_is_read_and_none_is_refused(tmp_path: Path) -> None:
    save_library_model("wav2vec2 base", tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match=r"do not say whether recordings are normalised .do_normalize.; put"):
        build_speech(tmp_path)
    for normalise in (False, True):
        inner = {"feature_extractor": {"do_normalize": normalise, "sampling_rate": HZ}}
        (tmp_path / "processor_config.json").write_text(json.dumps(inner))
        assert build_speech(tmp_path).normalise == normalise


def test_the_mix_over_layers_learns_as_the_head_does_also_below_a_frozen_encoder() -> None:
    changes = {"data.modalities": ["audio"], "preprocessing.window_s": 2}
    settings = {"kind": "speech", "width": WIDTH, "depth": 2, "heads": 2, "settings": CONVOLUTIONS}
    model = Classifier(override(Experiment(), changes | {"model.audio": settings}), DataShapes(1, 5))
    optim = override(Experiment(), {"optim.encoder_lr_scale": 0.1}).optim
    for frozen in (True, False):
        model.freeze_encoders(frozen)
        learning = {name for name, p in model.encoders.named_parameters() if p.requires_grad}
        assert learning == {"audio.mix"} if frozen else len(learning) > 20
        mix = model.get_parameter("encoders.audio.mix")
        groups = build_parameter_groups(model, optim)
        assert [group["scale"] for group in groups if any(p is mix for p in group["params"])] == [1.0]
    model.freeze_encoders(True)
    out = model({"audio": make_windows()}, PRESENT[:, None]).logits_BK.square().sum()
    out.backward()
    mix = model.get_parameter("encoders.audio.mix")
    assert mix.grad is not None and mix.grad.abs().sum() > 0


def test_whispers_positions_are_fixed_and_its_spectrogram_is_of_single_precision(tmp_path: Path) -> None:
    save_library_model("whisper", tmp_path)
    encoder, x = build_speech(tmp_path), make_windows()
    assert not any("embed_positions" in name for name, _ in encoder.named_parameters())
    assert "network.model.embed_positions.weight" in encoder.state_dict()
    extracted = []
    extract = encoder.network.extract
    encoder.network.extract = lambda *a, **k: extracted.append(extract(*a, **k)) or extracted[-1]  # type: ignore
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            assert encoder(x, PRESENT).tokens_BND.isfinite().all()
        assert torch.equal(extracted[-1].input_features, extracted[0].input_features)


def test_a_mix_of_large_values_is_finite_in_half_precision(tmp_path: Path) -> None:
    save_library_model("wav2vec2 large", tmp_path)
    encoder = build_speech(tmp_path)
    states = tuple(torch.full((1, 4, WIDTH), 6e4) for _ in range(DEPTH + 2))
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        assert torch.equal(encoder.read_layers(states), states[0])


@pytest.mark.parametrize("changed", [{"hop_length": 80}, {"chunk_length": 15}, {"feature_size": 80}, {"n_fft": 512}])
def test_another_spectrogram_than_whispers_is_refused(changed: dict[str, int], tmp_path: Path) -> None:
    save_library_model("whisper", tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(ConfigError, match=f"{next(iter(changed))} is .* there and"):
        build_speech(tmp_path)


def test_batch_statistics_between_positions_are_refused(tmp_path: Path) -> None:
    config = build_library_config("hubert base")
    config.conv_pos_batch_norm = True
    transformers.HubertModel(config).save_pretrained(tmp_path)
    make_extractor().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="batch_norm.* has no place"):
        build_speech(tmp_path)


def test_layers_are_counted_by_the_weights(tmp_path: Path) -> None:
    save_library_model("wav2vec2 base", tmp_path)
    with pytest.raises(ConfigError, match=r"have 3 layers, but model\.audio\.layers is 20"):
        build_speech(tmp_path, layers=20)
    with pytest.raises(ConfigError, match="layers is 20; use mix, last, or a number from 1 to depth, 12"):
        override(Experiment(), {"model.audio": {"kind": "speech", "layers": 20}})


def test_another_size_has_a_layer_that_is_read_and_its_own_feed_forward_width(tmp_path: Path) -> None:
    save_library_model("wav2vec2 base", tmp_path)
    keys = {"kind": "speech", "weights": str(tmp_path), "layers": DEPTH}
    e = adopt_published_settings(override(Experiment(), {"model.audio": keys}))
    assert getattr(e.model["audio"], "settings")["intermediate_size"] == 4 * WIDTH  # noqa: B009
    changes = {f"model.audio.{key}": value for key, value in e.model["audio"].scale_sizes(0.5).items()}
    halved: Any = override(e, changes | {"model.audio.weights": ""}).model["audio"]
    assert (halved.width, halved.depth, halved.layers) == (WIDTH // 2, 2, 2)
    assert "intermediate_size" not in halved.settings and halved.settings["conv_dim"] == CONVOLUTIONS["conv_dim"]


def test_settings_that_make_no_network_are_refused() -> None:
    for settings, message in (
        ({"conv_dims": [8]}, "settings has conv_dims; wav2vec2 has intermediate_size, hidden_act"),
        ({"conv_dim": [8, 8]}, "makes no wav2vec2"),
        ({"hidden_act": "gellu"}, "makes no wav2vec2"),
        ({"conv_stride": [0] * 7}, r"settings\.conv_stride is .*; give what is above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            e = override(Experiment(), {"model.audio": {"kind": "speech", "settings": settings}})
            build_encoder(e, "audio", DataShapes(1, 5))


def test_whisper_takes_no_window_that_it_would_cut_off() -> None:
    with pytest.raises(ConfigError, match=r"window_s is 31, but Whisper reads 30 s"):
        override(
            Experiment(), {"preprocessing.window_s": 31, "model.audio": {"kind": "speech", "architecture": "whisper"}}
        )

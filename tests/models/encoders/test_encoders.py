"""Every encoder keeps one contract, and each computes what its paper or its library computes."""

import math
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import scipy.signal
import torch
from torch import Tensor, nn
from transformers import ASTConfig, ASTModel

from eav_ray import config
from eav_ray.config import MODALITIES, EncoderConfig, Experiment, override
from eav_ray.config.model_sections import KIND_PLACES
from eav_ray.data.datasets import registry
from eav_ray.data.io.audio import read_audio as read_audio
from eav_ray.errors import ConfigError
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.ast import AST, AUDIOSET_SD, SAMPLE_RATE_HZ, FilterBank
from eav_ray.models.encoders.backbone import Backbone
from eav_ray.models.encoders.bandpower import BandPower
from eav_ray.models.encoders.base import DataShapes, Encoder
from eav_ray.models.encoders.braindecode import Braindecode
from eav_ray.models.encoders.covariance import Covariance
from eav_ray.models.encoders.eav_transformer import EAVTransformer
from eav_ray.models.encoders.eegformer import EEGformer
from eav_ray.models.encoders.factory import build_encoder
from eav_ray.models.encoders.mfcc import MFCC
from eav_ray.models.encoders.speech import Speech
from eav_ray.models.encoders.vit import ViT
from eav_ray.models.layers import FeatureStandardizer, TransformerBlock
from eav_ray.training import cost
from tests.helpers.ast_features import LibraryExtractor

WINDOW_S, CHANNELS, EEG_HZ = 2, 5, 50
SHAPES = DataShapes(CHANNELS, 4)
# Said by the library's own extractor: 257 bins leave the lowest of 128 triangles empty, as in Kaldi.
pytestmark = pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values:UserWarning")


def eegformer(**changes: Any) -> EEGformer:
    sizes = dict(filters=4, width=16, temporal_width=24, segments=4, depth=1, heads=4, dropout=0.5) | changes
    return EEGformer(CHANNELS, EEG_HZ * WINDOW_S, window_s=WINDOW_S, **sizes)


def ast(**changes: Any) -> AST:
    sizes = dict(width=24, depth=1, heads=2, max_length=256, stride=16, dropout=0.5, silence_db=30) | changes
    return AST(window_s=WINDOW_S, **sizes)


def vit(name: str = "vit_base_patch16_224", **changes: Any) -> ViT:
    sizes: dict[str, Any] = dict(
        image_size=16, patch=8, width=24, depth=1, heads=2, dropout=0.5, frames=3, n_stored_frames=10
    )
    return ViT(name, window_s=WINDOW_S, **(sizes | changes))


def eav_transformer(**changes: Any) -> EAVTransformer:
    sizes = dict(width=12, feed_forward=3, depth=2, heads=4, segments=5, dropout=0.5) | changes
    return EAVTransformer(CHANNELS, EEG_HZ * WINDOW_S, window_s=WINDOW_S, **sizes)


def bandpower(**changes: Any) -> BandPower:
    sizes = dict(width=16, segments=2, dropout=0.5) | changes
    return BandPower(CHANNELS, EEG_HZ * WINDOW_S, hz=EEG_HZ, window_s=WINDOW_S, **sizes)


def covariance(**changes: Any) -> Covariance:
    sizes = dict(width=16, segments=2, dropout=0.5, input_dropout=0.0, shrinkage=0.05) | changes
    return Covariance(CHANNELS, EEG_HZ * WINDOW_S, hz=EEG_HZ, window_s=WINDOW_S, **sizes)


def mfcc(**changes: Any) -> MFCC:
    sizes = dict(coefficients=8, log_mel=True, width=16, segments=4, dropout=0.5, input_dropout=0.0, silence_db=30)
    sizes |= changes
    return MFCC(window_s=WINDOW_S, **sizes)


def speech(**changes: Any) -> Speech:
    settings = {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    sizes: dict[str, Any] = dict(width=24, depth=2, heads=2, dropout=0.5, layers="mix", frames_per_token=5)
    sizes |= dict(architecture="wav2vec2", normalise=True, settings=settings, silence_db=30) | changes
    return Speech(window_s=WINDOW_S, **sizes)


def braindecode(**changes: Any) -> Braindecode:
    keys: dict[str, Any] = dict(names=(), stored_hz=EEG_HZ, n_outputs=5, from_weights=False, hz=0, unit_uv=1.0, width=0)
    keys |= dict(scale="standardised", channels=(), settings={"pool_time_length": 20, "pool_time_stride": 8}) | changes
    return Braindecode("ShallowFBCSPNet", n_stored_channels=CHANNELS, n_stored_times=EEG_HZ * WINDOW_S, **keys)


def eeg_input(n: int) -> Tensor:
    return torch.randn(n, CHANNELS, EEG_HZ * WINDOW_S)


def audio_input(n: int) -> Tensor:
    return torch.rand(n, SAMPLE_RATE_HZ * WINDOW_S) * 2 - 1


def video_input(n: int) -> Tensor:
    return torch.randint(0, 256, (n, 10, 16, 16, 3), dtype=torch.uint8)


def backbone(**changes: Any) -> Backbone:
    sizes: dict[str, Any] = dict(image_size=32, n_stored_frames=10, width=320, frames=3, dropout=0.5) | changes
    return Backbone("convnext_atto", window_s=WINDOW_S, from_weights=False, **sizes)


def large_video_input(n: int) -> Tensor:
    return torch.randint(0, 256, (n, 10, 32, 32, 3), dtype=torch.uint8)


ENCODERS = {  # by kind
    "eegformer": (eegformer, eeg_input, 4),
    "eav_transformer": (eav_transformer, eeg_input, 5),
    "bandpower": (bandpower, eeg_input, 2),
    "covariance": (covariance, eeg_input, 2),
    "braindecode": (braindecode, eeg_input, 8),
    "ast": (ast, audio_input, 16),
    "mfcc": (mfcc, audio_input, 4),
    "speech": (speech, audio_input, 20),
    "vit": (vit, video_input, 3),
    "backbone": (backbone, large_video_input, 3),
}
contract = pytest.mark.parametrize(("make", "inputs", "n_tokens"), ENCODERS.values(), ids=ENCODERS)
Make, Inputs = Callable[[], Encoder], Callable[[int], Tensor]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def list_package_kinds() -> dict[str, EncoderConfig]:
    """The kinds that the package itself defines, with the defaults of their sections."""
    sections = [section for m in MODALITIES for section in KIND_PLACES[f"model.{m}"].list_kinds().values()]
    return {s.kind: s() for s in sections if s.__module__.startswith("eav_ray.")}


def test_the_contract_covers_every_encoder() -> None:
    assert set(ENCODERS) == set(list_package_kinds())


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_experiment_builds_the_encoder_of_each_kind(kind: str) -> None:
    section = list_package_kinds()[kind]
    e = override(Experiment(), {f"model.{section.modality}.kind": kind})
    encoder = build_encoder(e, section.modality, DataShapes(30, 5))
    assert type(encoder) is type(ENCODERS[kind][0]()) and section.token_width in (encoder.width, 0)


@contract
def test_shapes_and_masks_are_what_fusion_expects(make: Make, inputs: Inputs, n_tokens: int) -> None:
    encoder = make()
    present = torch.tensor([True, False, True])
    tokens, mask, pooled = encoder(inputs(3), present)
    assert tokens.shape == (3, n_tokens, encoder.width) and tokens.dtype == torch.float32
    assert mask.shape == (3, n_tokens) and mask.dtype == torch.bool
    assert pooled.shape == (3, encoder.width)
    assert mask.any(1).tolist() == present.tolist()


@contract
def test_token_times_rise_within_the_window(make: Make, inputs: Inputs, n_tokens: int) -> None:
    times = make().times_s
    assert times.shape == (n_tokens,)
    assert (times.diff() >= 0).all() and times.min() >= 0 and times.max() <= WINDOW_S
    real = make()(inputs(1), torch.ones(1, dtype=torch.bool)).mask_BN[0]
    assert (times[real].diff() > 0).all()


@contract
def test_every_parameter_gets_a_gradient(make: Make, inputs: Inputs, n_tokens: int) -> None:
    encoder = make().eval()
    tokens, _, pooled = encoder(inputs(2), torch.ones(2, dtype=torch.bool))
    (tokens * torch.randn_like(tokens)).sum().add((pooled * torch.randn_like(pooled)).sum()).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@contract
def test_evaluation_draws_nothing_and_training_does(make: Make, inputs: Inputs, n_tokens: int) -> None:
    encoder, x, present = make(), inputs(2), torch.ones(2, dtype=torch.bool)
    encoder.eval()
    assert torch.equal(encoder(x, present).tokens_BND, encoder(x, present).tokens_BND)
    encoder.train()
    assert not torch.equal(encoder(x, present).tokens_BND, encoder(x, present).tokens_BND)


@contract
def test_state_survives_safetensors(make: Make, inputs: Inputs, n_tokens: int) -> None:
    encoder, x, present = make().eval(), inputs(2), torch.ones(2, dtype=torch.bool)
    other = make().eval()
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(encoder.state_dict())))
    for one, another in zip(encoder(x, present), other(x, present), strict=True):
        assert torch.equal(one, another)


@contract
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.01)], ids=str)
def test_half_precision_is_close_to_single_precision(
    make: Make, inputs: Inputs, n_tokens: int, dtype: torch.dtype, tolerance: float
) -> None:
    encoder, x, present = make().eval(), inputs(2), torch.ones(2, dtype=torch.bool)
    before = encoder(x, present).pooled_BD
    with torch.autocast("cpu", dtype):
        after = encoder(x, present).pooled_BD
    assert not torch.equal(after.float(), before)
    assert (after.float() - before).norm() < tolerance * before.norm()


@contract
def test_tokens_in_another_order_of_time_give_another_result(make: Make, inputs: Inputs, n_tokens: int) -> None:
    encoder, present = make().eval(), torch.ones(1, dtype=torch.bool)
    x = inputs(1)
    axis = 1 if inputs in (audio_input, video_input, large_video_input) else 2
    turned = x.roll(x.shape[axis] // 2, axis)
    before, after = encoder(x, present), encoder(turned, present)
    assert not torch.allclose(before.tokens_BND, after.tokens_BND, atol=1e-4)
    half = n_tokens // 2
    shifted = before.tokens_BND.roll(half, 1)
    if make is not eav_transformer:  # by the reference's design it has no positions
        assert not torch.allclose(shifted, after.tokens_BND, atol=1e-4)


@pytest.mark.parametrize("make", [eegformer, bandpower, covariance, ast, mfcc, vit])
def test_every_position_table_is_used(make: Make) -> None:
    encoder, present = make().eval(), torch.ones(1, dtype=torch.bool)
    x = {ast: audio_input, mfcc: audio_input, vit: video_input}.get(make, eeg_input)(1)
    before = encoder(x, present).tokens_BND
    tables = [n for n, _ in encoder.named_parameters() if "position" in n or "pos_embed" in n]
    assert tables
    for name in tables:
        table = encoder.get_parameter(name)
        kept = table.detach().clone()
        with torch.no_grad():
            table.zero_()
            assert not torch.allclose(encoder(x, present).tokens_BND, before, atol=1e-5), name
            table.copy_(kept)


def test_the_tokens_of_all_modalities_lie_on_one_clock() -> None:
    """A click at 3.6 s moves most the tokens that say they lie there."""
    e = override(
        Experiment(),
        {
            "model.audio": {"width": 24, "depth": 1, "heads": 2},
            "model.eeg": {"kind": "bandpower", "width": 16},
            "model.video": {"width": 24, "depth": 1, "heads": 2, "patch": 56},
        },
    )
    at = {"audio": 57_600, "eeg": 360, "video": 18}
    inputs = {
        "audio": 1e-3 * torch.randn(1, 80_000),
        "eeg": 1e-3 * torch.randn(1, CHANNELS, 500),
        "video": torch.zeros(1, 25, 224, 224, 3, dtype=torch.uint8),
    }
    for modality, x in inputs.items():
        encoder = build_encoder(e, modality, SHAPES).eval()
        changed = x.clone()
        place = (slice(None), slice(None), at["eeg"]) if modality == "eeg" else (slice(None), at[modality])
        changed[place] = 255 if modality == "video" else 1.0
        present = torch.ones(1, dtype=torch.bool)
        with torch.no_grad():
            if modality == "audio":  # attention spreads a click over all tokens: look at what enters it
                assert isinstance(encoder, AST)
                before, after = (
                    encoder.model.embeddings.patch_embeddings(encoder.filter_bank(w)) for w in (x, changed)
                )
                moved = (after - before).view(1, encoder.n_patch_bands, -1, encoder.width).norm(dim=(1, 3))[0]
            else:
                moved = (encoder(changed, present).tokens_BND - encoder(x, present).tokens_BND).norm(dim=2)[0]
        span = 5 / len(encoder.times_s)
        assert abs(encoder.times_s[moved.argmax()] - 3.6) <= max(0.1, span), modality


@contract
def test_rows_of_a_batch_do_not_see_each_other(make: Make, inputs: Inputs, n_tokens: int) -> None:
    encoder, x = make().eval(), inputs(3)
    combined = encoder(x, torch.tensor([True, False, True]))
    for row in range(3):
        alone = encoder(x[row : row + 1], torch.ones(1, dtype=torch.bool))
        torch.testing.assert_close(combined.tokens_BND[row : row + 1], alone.tokens_BND, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(combined.pooled_BD[row : row + 1], alone.pooled_BD, rtol=1e-4, atol=1e-5)


SIZES = [("eeg", 2.69e6), ("audio", 85.7e6), ("video", 85.8e6)]


@pytest.mark.parametrize(("modality", "published"), SIZES)
def test_the_default_sizes_are_the_published_ones(modality: str, published: float) -> None:
    with torch.device("meta"):
        encoder = build_encoder(Experiment(), modality, DataShapes(30, 5))
    count = sum(p.numel() for p in encoder.parameters())
    assert count == pytest.approx(published, rel=2e-3)


@pytest.mark.parametrize(("gpus", "speed"), [(0, 1e9), (1, cost.ASSUMED_GPU_FLOPS)])
def test_published_sizes_are_estimated_without_being_built(
    gpus: int, speed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "measure_cpu_flops", lambda: 1e9)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    longer = {"preprocessing.video.fps": 20, "model.video.frames": 100, "runtime.gpus_per_worker": gpus}
    found = cost.estimate_seconds_per_window(override(Experiment(), longer), DataShapes(30, 5))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 500_000
    # ViT-B/16 is 17.6 billion multiplications with addition a frame; backward is twice forward.
    assert found["video"] * speed == pytest.approx(3 * 100 * 2 * 17.6e9, rel=0.01)
    assert found["eeg"] < found["audio"] < found["video"]


@pytest.mark.parametrize(
    "kind",
    [
        "model.eeg.kind=eav_transformer",
        "model.eeg.kind=bandpower",
        "model.eeg.kind=covariance",
        "model.eeg.kind=braindecode",
        "model.audio.kind=mfcc",
    ],
)
@pytest.mark.parametrize("gpus", [0, 1])
def test_the_time_of_every_kind_is_estimated(kind: str, gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "measure_cpu_flops", lambda: 1e9)
    key, _, value = kind.partition("=")
    changes = {key: value, "data.modalities": [key.split(".")[1]], "runtime.gpus_per_worker": gpus}
    (seconds,) = cost.estimate_seconds_per_window(override(Experiment(), changes), DataShapes(30, 5)).values()
    assert 0 < seconds < math.inf


def test_small_models_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "measure_cpu_flops", lambda: pytest.fail("it was counted"))
    small = {f"model.eeg.{k}": v for k, v in {"filters": 4, "width": 32, "temporal_width": 32, "heads": 2}.items()}
    threads = torch.get_num_threads()
    small |= {"data.modalities": ["eeg"], "runtime.gpus_per_worker": 0}
    found = cost.estimate_seconds_per_window(override(Experiment(), small), SHAPES)
    assert list(found) == ["eeg"] and 0 < found["eeg"] < 10
    assert torch.get_num_threads() == threads


def sounds() -> dict[str, np.ndarray]:
    seconds = np.arange(5 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    rng = np.random.default_rng(0)
    return {
        "noise": rng.uniform(-0.5, 0.5, len(seconds)),
        "silence": np.zeros(len(seconds)),
        "clipped sine": np.clip(3 * np.sin(2 * np.pi * 440 * seconds), -1, 1),
        "chirp": 0.5 * np.sin(2 * np.pi * (50 + 700 * seconds) * seconds),
        "offset": 0.3 + 0.01 * rng.normal(size=len(seconds)),
        "short": rng.uniform(-0.5, 0.5, 2 * SAMPLE_RATE_HZ),
    }


@pytest.mark.parametrize("name", sounds())
@pytest.mark.parametrize("max_length", [512, 300])
def test_the_filter_bank_is_that_of_the_library(name: str, max_length: int) -> None:
    wave = sounds()[name].astype(np.float32)
    library = LibraryExtractor(max_length)
    expected = library(wave, SAMPLE_RATE_HZ)[0]
    bank = FilterBank(max_length).to(torch.float32)  # as an engine does
    found = bank(torch.from_numpy(wave)[None])[0].numpy()
    assert found.shape == expected.shape
    difference = np.abs(found - expected) * 2 * AUDIOSET_SD  # log-mel units
    assert difference.max() < 1e-3
    assert difference.mean() < 2e-5


@pytest.mark.parametrize("max_length", [512, 1024])
def test_the_filter_bank_is_that_of_the_library_on_real_speech(real: Path, max_length: int) -> None:
    _, listing = registry.scan_dataset(config.DataConfig(dataset="ravdess", root=str(real), modalities=("audio",)))
    some = [r for r in listing.recordings if r.audio is not None][::16]
    assert len({r.subject for r in some}) > 12
    library = LibraryExtractor(max_length)
    waves, lengths = np.zeros((len(some), 5 * SAMPLE_RATE_HZ), np.float32), []
    for row, recording in zip(waves, some, strict=True):
        assert recording.audio is not None
        clip = read_audio(recording.audio, SAMPLE_RATE_HZ)[: len(row)]
        row[: len(clip)] = clip
        lengths.append(len(clip))
    clips = [row[:n] for row, n in zip(waves, lengths, strict=True)]
    expected = library(clips, SAMPLE_RATE_HZ)
    found = FilterBank(max_length)(torch.from_numpy(waves), torch.tensor(lengths)).numpy()
    difference = np.abs(found - expected) * 2 * AUDIOSET_SD
    assert difference.max() < 1e-3
    assert difference.mean() < 2e-5


def test_five_seconds_are_498_frames() -> None:
    features = FilterBank(512)(torch.randn(1, 5 * SAMPLE_RATE_HZ))[0]
    padding = features[498:]
    assert (padding == padding[0, 0]).all()
    assert not (features[497] == padding[0, 0]).any()


def test_ast_is_the_librarys_model_averaged_over_frequency() -> None:
    ours = ast(dropout=0.0).eval()
    config = ASTConfig(
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=96,
        time_stride=16,
        frequency_stride=16,
        max_length=256,
    )
    reference = ASTModel(config).eval()
    reference.load_state_dict(ours.model.state_dict())
    x = audio_input(2)
    out = reference(ours.filter_bank(x))
    bands, times = 8, 16
    expected = torch.stack(
        [
            torch.stack([out.last_hidden_state[:, 2 + f * times + t] for f in range(bands)]).mean(0)
            for t in range(times)
        ],
        1,
    )
    found = ours(x, torch.ones(2, dtype=torch.bool))
    torch.testing.assert_close(found.tokens_BND, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.pooled_BD, out.pooler_output, rtol=1e-5, atol=1e-6)


def test_a_time_token_of_ast_covers_its_own_time_and_no_other() -> None:
    ours = ast().eval()
    features = torch.randn(1, 256, 128)
    changed = features.clone()
    changed[:, 16 * 5 : 16 * 6] += 1  # ten milliseconds a frame: the sixth patch in time
    before, after = (ours.model.embeddings.patch_embeddings(f) for f in (features, changed))
    moved = (before != after).any(-1).view(ours.n_patch_bands, -1)
    assert moved.all(0).tolist() == [t == 5 for t in range(16)]
    assert moved.any(0).tolist() == [t == 5 for t in range(16)]
    assert ours.times_s[5] == pytest.approx((16 * 5 + 8) * 0.01)


def watched(encoder: EEGformer, x: Tensor) -> dict[str, Tensor]:
    """What goes in and comes out of each stage."""
    seen: dict[str, Tensor] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[f"{names[module]}.in"], seen[f"{names[module]}.out"] = inputs[0].detach(), output.detach()

    names = {getattr(encoder, n): n for n in ("filters", "regional", "synchronous", "temporal_in", "temporal")}
    hooks = [module.register_forward_hook(note) for module in names]
    encoder(x, torch.ones(len(x), dtype=torch.bool))
    for hook in hooks:
        hook.remove()
    return seen


def test_eegformer_attends_over_filters_within_an_electrode_first() -> None:
    x = eeg_input(2)
    changed = x.clone()
    changed[1, 3] += torch.randn(x.shape[2])
    encoder = eegformer().eval()
    before, after = watched(encoder, x), watched(encoder, changed)
    assert before["filters.out"].shape == (2 * CHANNELS, 4, 100 - 27)
    assert before["regional.in"].shape == (2 * CHANNELS, 4, 16)
    moved = (before["regional.out"] != after["regional.out"]).flatten(1).any(1)
    assert moved.nonzero().flatten().tolist() == [1 * CHANNELS + 3]


def test_eegformer_attends_over_electrodes_within_a_filter_second() -> None:
    encoder = eegformer().eval()
    seen = watched(encoder, eeg_input(2))
    assert seen["synchronous.in"].shape == (2 * 4, CHANNELS, 16)
    for sample in range(2):
        for c in range(4):
            for s in range(CHANNELS):
                expected = seen["regional.out"][sample * CHANNELS + s, c] + encoder.synchronous_position[s]
                torch.testing.assert_close(seen["synchronous.in"][sample * 4 + c, s], expected)


def test_eegformers_segments_are_contiguous() -> None:
    encoder = eegformer().eval()

    def ramp(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return torch.arange(16.0).expand_as(output)

    encoder.synchronous.register_forward_hook(ramp)
    flat = watched(encoder, eeg_input(1))["temporal_in.in"]
    assert flat.shape == (1, 4, CHANNELS * 4)
    expected = torch.tensor([1.5, 5.5, 9.5, 13.5])[:, None].expand(4, CHANNELS * 4)
    assert torch.equal(flat[0], expected)  # interleaved segments would give 6, 7, 8, 9


def test_the_convolutions_are_the_same_for_every_electrode() -> None:
    seen = watched(eegformer().eval(), torch.randn(1, 1, 100).expand(1, CHANNELS, 100))
    assert torch.equal(seen["filters.out"], seen["filters.out"][:1].expand(CHANNELS, -1, -1))


def test_our_block_is_torchs_pre_norm_layer_with_softmax_attention() -> None:
    block = TransformerBlock(24, 4, dropout=0.0).eval()
    reference = nn.TransformerEncoderLayer(24, 4, 96, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    names = {
        "norm1": reference.norm1,
        "norm2": reference.norm2,
        "proj": reference.self_attn.out_proj,
        "mlp.0": reference.linear1,
        "mlp.3": reference.linear2,
    }
    for name, module in names.items():
        module.load_state_dict(block.get_submodule(name).state_dict())
    with torch.no_grad():
        reference.self_attn.in_proj_weight.copy_(block.qkv.weight)
        reference.self_attn.in_proj_bias.copy_(block.qkv.bias)
        x = torch.randn(2, 7, 24)
        torch.testing.assert_close(block(x), reference(x), rtol=1e-5, atol=1e-5)


def test_a_unimodal_head_gives_logits_and_no_softmax() -> None:
    changes = {"data.modalities": ["eeg"], "preprocessing.window_s": WINDOW_S, "preprocessing.eeg.hz": 100}
    small = {"filters": 4, "width": 16, "temporal_width": 16, "segments": 4, "depth": 1, "heads": 2}
    model = Classifier(override(Experiment(), changes | {f"model.eeg.{k}": v for k, v in small.items()}), SHAPES).eval()
    x, present = torch.randn(3, CHANNELS, 200), torch.ones(3, 1, dtype=torch.bool)
    encoded, logits = model.encode({"eeg": x}, present)
    expected = encoded["eeg"].pooled_BD @ model.heads["eeg"].weight.T + model.heads["eeg"].bias
    torch.testing.assert_close(logits["eeg"], expected)
    assert torch.equal(model({"eeg": x}, present).logits_BK, logits["eeg"])


@pytest.mark.parametrize("n_times", [1, 27])
def test_a_window_too_short_for_the_convolutions_is_refused(n_times: int) -> None:
    sizes = dict(filters=4, width=16, temporal_width=16, segments=4, depth=1, heads=4, dropout=0.0)
    with pytest.raises(ConfigError, match="at least 28"):
        EEGformer(CHANNELS, n_times, window_s=1, **sizes)
    EEGformer(CHANNELS, 28, window_s=1, **sizes)


def test_a_patch_that_does_not_divide_the_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="patch is 9, which does not divide image_size 224"):
        override(Experiment(), {"model.video.patch": 9})


def test_an_unknown_vision_transformer_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match='did you mean "vit_'):
        vit("vit_base_patch16_223")


@pytest.mark.parametrize(
    "name",
    [
        "vit_relpos_small_patch16_224",
        "vit_small_patch16_dinov3",
        "vit_base_patch16_rope_224",
        "vit_base_resnet50d_224",
        "vit_base_patch16_sapiens2",
        "vit_base_patch16_gap_224",
        "vit_base_patch16_siglip_224",
        "vit_base_patch16_reg4_gap_256",  # prefix tokens, but no class token
    ],
)
def test_a_vision_transformer_without_a_class_token_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f'model.video.name is "{name}".*class token.*vit_base_patch16_224'):
        vit(name)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_clip_224", "vit_small_patch14_reg4_dinov2"])
def test_the_token_of_a_frame_is_its_class_token(name: str) -> None:
    encoder = vit(name).eval()
    x = video_input(1)
    frames = x[0, encoder.frame_indices].permute(0, 3, 1, 2) / 127.5 - 1
    frames = (frames / 2 + 0.5 - encoder.mean) / encoder.sd  # the scale that each model's weights expect
    expected = encoder.model(frames) + encoder.position  # timm's own pooling, without a head
    torch.testing.assert_close(encoder(x, torch.ones(1, dtype=torch.bool)).tokens_BND[0], expected)


def test_the_vision_transformer_sees_the_frames_its_times_name() -> None:
    encoder = vit().eval()
    assert encoder.frame_indices.tolist() == [1, 5, 8]
    torch.testing.assert_close(encoder.times_s, (encoder.frame_indices + 0.5) * 0.2)
    x = video_input(1)
    before = encoder(x, torch.ones(1, dtype=torch.bool)).tokens_BND
    for frame in range(10):
        changed = x.clone()
        changed[:, frame] = 255 - changed[:, frame]
        moved = (encoder(changed, torch.ones(1, dtype=torch.bool)).tokens_BND != before).any(-1)[0]
        assert moved.tolist() == [frame == c for c in (1, 5, 8)]


def test_patches_are_centred_before_they_are_embedded() -> None:
    """Other light, and a wall of another colour, change nothing; what is in a patch stays as it is."""
    encoder = vit(centre_patches=True, dropout=0.0).eval()
    seen: list[Tensor] = []
    encoder.model.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.randint(50, 100, (1, 10, 16, 16, 3), dtype=torch.uint8)
    x[:, :, :8, :8] = 70  # a wall
    other = x - 40
    other[:, :, :8, :8] = torch.tensor([200, 10, 90], dtype=torch.uint8)
    present = torch.ones(1, dtype=torch.bool)
    torch.testing.assert_close(encoder(x, present).tokens_BND, encoder(other, present).tokens_BND)
    frames = x[0, encoder.frame_indices].permute(0, 3, 1, 2) / 127.5 - 1
    patch = frames[:, :, 8:, :8]
    torch.testing.assert_close(seen[0][:, :, 8:, :8], patch - patch.mean((2, 3), keepdim=True))


def test_published_weights_and_centred_patches_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="centre_patches is true.*set centre_patches: false"):
        override(Experiment(), {"model.video.weights": "weights", "model.video.centre_patches": True})


def test_pixels_are_scaled_as_the_published_weights_expect() -> None:
    encoder = vit().eval()
    seen: list[Tensor] = []
    encoder.model.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = video_input(1)
    x[0, 1, 2, 3] = torch.tensor([0, 255, 51], dtype=torch.uint8)
    encoder(x, torch.ones(1, dtype=torch.bool))
    torch.testing.assert_close(seen[0][0, :, 2, 3], torch.tensor([-1.0, 1.0, -0.6]))


def test_the_references_eeg_transformer_has_its_size_and_layers() -> None:
    e = override(Experiment(), {"model.eeg.kind": "eav_transformer", "data.modalities": ["eeg"]})
    encoder = build_encoder(e, "eeg", DataShapes(30, 5))
    assert sum(p.numel() for m in (encoder, encoder.build_head(5)) for p in m.parameters()) == 122_693
    assert isinstance(encoder, EAVTransformer)
    kinds = [type(m).__name__ for m in encoder.conv]
    assert kinds == ["Conv1d", "BatchNorm1d", "ReLU", "Dropout1d", "Conv1d", "BatchNorm1d", "Dropout"]
    assert len(encoder.blocks) == 6
    x, present = torch.randn(2, 30, 500), torch.ones(2, dtype=torch.bool)
    encoder.eval()
    out = encoder(x, present)
    samples = encoder.conv(x).transpose(1, 2)
    for block in encoder.blocks:
        assert isinstance(block, nn.TransformerEncoderLayer)
        attended = block.self_attn(samples, samples, samples, need_weights=False)[0]
        samples = block.norm1(samples + attended)  # post-norm
        samples = block.norm2(samples + block.linear2(block.linear1(samples).relu()))
    torch.testing.assert_close(out.pooled_BD, samples.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.tokens_BND.mean(1), samples.mean(1), rtol=1e-4, atol=1e-5)
    assert [type(m).__name__ for m in encoder.build_head(5).children()] == ["Linear", "ReLU", "Dropout", "Linear"]


@pytest.mark.parametrize("n_chans", [1, 19, 30, 64])
@pytest.mark.parametrize("kind", ["eegformer", "eav_transformer", "bandpower", "covariance", "braindecode"])
def test_any_number_of_electrodes_and_samples_will_do(kind: str, n_chans: int) -> None:
    for window_s, hz in ((5, 100), (2, 128), (3, 250)):
        changes = {
            "data.modalities": ["eeg"],
            "model.eeg.kind": kind,
            "preprocessing.window_s": window_s,
            "preprocessing.eeg.hz": hz,
        }
        encoder = build_encoder(override(Experiment(), changes), "eeg", DataShapes(n_chans, 3)).eval()
        out = encoder(torch.randn(1, n_chans, window_s * hz), torch.ones(1, dtype=torch.bool))
        assert out.tokens_BND.isfinite().all() and len(encoder.times_s) == out.tokens_BND.shape[1]


def test_a_window_too_short_for_an_eeg_encoder_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs at least 11"):
        EAVTransformer(CHANNELS, 10, window_s=1, width=12, feed_forward=3, depth=1, heads=4, segments=5, dropout=0.0)
    with pytest.raises(ConfigError, match=r"model\.eeg\.segments"):
        bandpower(segments=50)
    with pytest.raises(ConfigError, match=r"kind=covariance .* model\.eeg\.segments"):
        covariance(segments=50)
    with pytest.raises(ConfigError, match=r"model\.audio\.segments"):
        mfcc(segments=100)


def test_differential_entropy_is_that_of_the_band_passed_signal() -> None:
    hz, encoder = 100, BandPower(2, 3000, hz=100, window_s=30, segments=1, width=8, dropout=0.0)
    rng = np.random.default_rng(0)
    x = scipy.signal.lfilter([1], [1, -0.8], rng.standard_normal((2, 3000)))
    found = encoder.compute_differential_entropy(torch.from_numpy(x)[None]).view(2, 5)
    for band, (low, high) in enumerate([(1, 4), (4, 8), (8, 13), (13, 30), (30, 45)]):
        sos = scipy.signal.butter(8, [low, high], "bandpass", fs=hz, output="sos")
        variance = scipy.signal.sosfiltfilt(sos, x).var(-1)
        expected = 0.5 * np.log(2 * np.pi * np.e * variance)
        np.testing.assert_allclose(found[:, band], expected, atol=0.1)


def test_a_feature_that_never_changes_stays_zero_and_no_rows_change_nothing() -> None:
    standardise = FeatureStandardizer(3)
    standardise.fit([torch.zeros(0, 3)])
    x = torch.tensor([[1.0, 5.0, -9.0], [3.0, 5.0, -9.0000005]])
    torch.testing.assert_close(standardise(x), x)
    standardise.fit([x[:1], x[1:]])
    torch.testing.assert_close(standardise(x), torch.tensor([[-1.0, 0, 0], [1, 0, 0]]))
    assert standardise(torch.tensor([[-500.0, 5, -9]])).tolist() == [[-10, 0, 0]]

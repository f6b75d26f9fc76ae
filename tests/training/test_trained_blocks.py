"""Encoders of which only the last blocks learn, and blocks that learn at rates of their own."""

from typing import Any

import pytest
import torch
from torch import nn

from eav_ray.config import Experiment, override
from eav_ray.errors import ConfigError
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes, Encoder
from eav_ray.models.encoders.pretrained import load_tensors
from eav_ray.training.cost import count_learning_parameters, estimate_seconds_per_window, make_random_batch
from eav_ray.training.engines.base import build_parameter_groups, limit_training

NAMES = ("Fp1", "Fp2", "F7", "F3", "Fz", "F4", "F8", "T7")
SHAPES = DataShapes(len(NAMES), 5, NAMES)
SPEECH = {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
# Keys of an encoder of four blocks, and the place of its blocks.
SMALL: dict[str, Any] = {"width": 24, "depth": 4, "heads": 2}
ENCODERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "ast": ("audio", {"kind": "ast"} | SMALL, "model.layers.{}."),
    "speech": (
        "audio",
        {"kind": "speech", "settings": SPEECH} | SMALL,
        "encoder.layers.{}.",
    ),
    "vit": ("video", {"kind": "vit", "frames": 2} | SMALL, "model.blocks.{}."),
    "cbramod": ("eeg", {"kind": "braindecode", "name": "CBraMod", "settings": {"n_layer": 4}}, "encoder.layers.{}."),
    "biot": (
        "eeg",
        {"kind": "braindecode", "name": "BIOT", "settings": {"num_layers": 4}},
        "layers.{}.",
    ),
}
encoders = pytest.mark.parametrize("kind", ENCODERS)
# Some of these networks read weights past their modules where nothing learns: the fast path of torch's transformers.
JEPA: tuple[str, dict[str, Any], str] = ("eeg", {"kind": "braindecode", "name": "SignalJEPA"}, "encoder.layers.{}.")
adapted_encoders = pytest.mark.parametrize("kind", [*ENCODERS, "signal_jepa"])
RANK, ALPHA = 2, 6.0


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def make_experiment(kind: str, **optim: Any) -> Experiment:
    modality, keys, _ = (ENCODERS | {"signal_jepa": JEPA})[kind]
    changes = {"preprocessing.eeg.hz": 200, "preprocessing.video.size": 32, "data.modalities": [modality]}
    changes |= {f"model.{modality}": keys} | {f"train.encoders.{modality}.{k}": v for k, v in optim.items()}
    if kind == "vit":
        changes["model.video"] = keys | {"image_size": 32}
    return override(Experiment(), changes)


def build(experiment: Experiment) -> tuple[Classifier, Encoder]:
    model = Classifier(experiment, SHAPES)
    (encoder,) = model.encoders.values()
    assert isinstance(encoder, Encoder)
    return model, encoder


@encoders
def test_every_parameter_lies_at_one_depth_and_each_block_at_its_own(kind: str) -> None:
    _, encoder = build(make_experiment(kind))
    groups, names = encoder.group_parameters(), [name for name, _ in encoder.named_parameters()]
    assert sorted(name for group in groups for name in group) == sorted(names) and len(groups) == 5
    for k in range(4):
        place = ENCODERS[kind][2].format(k)
        assert any(place in name for name in groups[k + 1])
        assert not any(place in name for j, group in enumerate(groups) if j != k + 1 for name in group)
    own = {name for name in names if "." not in name}
    assert own <= {*groups[-1]}  # no published weights have them


@encoders
def test_only_the_last_blocks_learn_and_the_others_draw_nothing(kind: str) -> None:
    e = make_experiment(kind, trained_blocks=2)
    (modality,) = e.data.modalities
    model, encoder = build(e)
    optim = e.train.encoders[modality]
    limit_training(model, optim)
    model.train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch = make_random_batch(e, modality, SHAPES, 2)
    optimizer = torch.optim.SGD(build_parameter_groups(model, optim), lr=1.0)
    model(batch.inputs, batch.present_BM).logits_BK.square().sum().backward()
    optimizer.step()
    upper = {f"encoders.{modality}.{name}" for group in encoder.group_parameters()[-2:] for name in group}
    learned = {f"encoders.{modality}.{name}" for name in encoder.head_parameters} | upper
    for name, parameter in model.named_parameters():
        is_moved = not torch.equal(parameter, before[name])
        assert is_moved <= (name in learned or name.startswith("heads.")), name
    assert any(not torch.equal(model.get_parameter(name), before[name]) for name in upper)
    blocks = encoder.list_blocks()
    assert [any(m.training for m in block.modules()) for block in blocks] == [False, False, True, True]
    learning, whole = count_learning_parameters(e, modality, SHAPES)
    assert learning == sum(p.numel() for p in model.parameters() if p.requires_grad) < whole
    assert whole == sum(p.numel() for p in model.parameters())


@encoders
def test_each_block_learns_at_a_multiple_of_the_rate_of_the_next(kind: str) -> None:
    e = make_experiment(kind, layer_decay=0.5, encoder_lr_scale=0.1)
    (modality,) = e.data.modalities
    model, encoder = build(e)
    limit_training(model, e.train.encoders[modality])
    found = build_parameter_groups(model, e.train.encoders[modality])
    scales = {id(p): group["scale"] for group in found for p in group["params"]}
    for depth, names in enumerate(encoder.group_parameters()):
        for name in set(names) - {*encoder.head_parameters}:
            assert scales[id(encoder.get_parameter(name))] == pytest.approx(0.1 * 0.5 ** (4 - depth)), name
    assert {scales[id(p)] for p in model.heads.parameters()} == {1.0}


def test_the_blocks_of_a_network_of_timm_are_those_that_timm_counts() -> None:
    keys = {"kind": "backbone", "name": "convnext_atto", "frames": 2}
    e = override(Experiment(), {"preprocessing.video.size": 32, "data.modalities": ["video"], "model.video": keys})
    _, encoder = build(e)
    groups = encoder.group_parameters()
    assert sorted(name for group in groups for name in group) == sorted(name for name, _ in encoder.named_parameters())
    assert "position" in groups[-1] and all("stem" in name for name in groups[0]) and len(groups) > 10


def test_more_blocks_than_there_are_is_an_error_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"train\.encoders\.audio\.trained_blocks is 5, but the encoder has 4 blocks"):
        estimate_seconds_per_window(
            override(make_experiment("ast", trained_blocks=5), {"runtime.gpus_per_worker": 0}), SHAPES
        )
    e = override(make_experiment("ast"), {"data.modalities": ["eeg"], "model.eeg": {"kind": "bandpower"}})
    model = Classifier(e, SHAPES)
    with pytest.raises(ConfigError, match="but the encoder has 0 blocks"):
        limit_training(model, override(e, {"train.encoders.eeg.trained_blocks": 1}).train.encoders["eeg"])


def test_less_backward_is_less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from eav_ray.training import cost

    monkeypatch.setattr(cost, "measure_cpu_flops", lambda: 1e9)
    monkeypatch.setattr(cost, "MAX_TIMED_FLOPS", 0)
    whole, one = (
        estimate_seconds_per_window(
            override(make_experiment("ast", trained_blocks=n), {"runtime.gpus_per_worker": 0}), SHAPES
        )["audio"]
        for n in (0, 1)
    )
    assert whole / 3 < one < 0.75 * whole


def merge_adapters(adapted: Encoder) -> dict[str, torch.Tensor]:
    """Compute the weights of an encoder to whose matrices its adapters were added."""
    state, merged = adapted.state_dict(), {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        place = name.removesuffix(".base_layer.weight")
        if place != name and f"{place}.lora_A.default.weight" in state:
            low, high = (state[f"{place}.lora_{x}.default.weight"] for x in "AB")
            tensor = tensor + ALPHA / RANK * high @ low
        merged[name.replace(".base_layer.", ".")] = tensor
    return merged


@adapted_encoders
def test_adapters_add_to_matrices_what_they_say_and_nothing_at_first(kind: str) -> None:
    e = make_experiment(kind, lora_rank=RANK, lora_alpha=ALPHA)
    (modality,) = e.data.modalities
    torch.manual_seed(1)
    _, adapted = build(e)
    torch.manual_seed(1)
    _, plain = build(make_experiment(kind))
    adapted.eval(), plain.eval()
    batch = make_random_batch(e, modality, SHAPES, 2)
    x, present = (
        batch.inputs[modality].float() if modality != "video" else batch.inputs[modality],
        batch.present_BM[:, 0],
    )
    with torch.no_grad():
        torch.testing.assert_close(adapted(x, present).tokens_BND, plain(x, present).tokens_BND)
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, 0.05)
        found = adapted(x, present).tokens_BND
        assert not torch.allclose(found, plain(x, present).tokens_BND, atol=1e-4)
        plain.load_state_dict(merge_adapters(adapted))
        torch.testing.assert_close(found, plain(x, present).tokens_BND, rtol=1e-4, atol=1e-5)


@adapted_encoders
def test_with_adapters_nothing_else_of_a_published_network_learns(kind: str) -> None:
    e = make_experiment(kind, lora_rank=RANK, trained_blocks=1)
    (modality,) = e.data.modalities
    model, encoder = build(e)
    optim = e.train.encoders[modality]
    limit_training(model, optim)
    learning = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert {name for name in learning if ".lora_" not in name} == {
        n for n, _ in encoder.named_parameters() if "." not in n
    }
    assert {name for name in learning if ".lora_" in name} <= {*encoder.group_parameters()[-1]}
    batch = make_random_batch(e, modality, SHAPES, 2)
    model(batch.inputs, batch.present_BM).logits_BK.square().sum().backward()
    assert all(p.grad is not None for n, p in encoder.named_parameters() if ".lora_B." in n)
    model.freeze_encoders(True)
    assert {n for n, p in encoder.named_parameters() if p.requires_grad} == {*encoder.head_parameters}
    learned, whole = count_learning_parameters(e, modality, SHAPES)
    assert learned < whole / 4


@adapted_encoders
def test_published_weights_go_below_adapters(kind: str) -> None:
    _, plain = build(make_experiment(kind))
    torch.manual_seed(3)
    _, adapted = build(make_experiment(kind, lora_rank=RANK))
    before = {name: t.clone() for name, t in adapted.state_dict().items() if ".lora_" in name}
    load_tensors(adapted, plain.state_dict(), "model.x.weights", "here", ())
    for name, tensor in adapted.state_dict().items():
        assert torch.equal(
            tensor, before[name] if name in before else plain.state_dict()[name.replace(".base_layer.", ".")]
        )


def test_what_cannot_have_adapters_is_refused() -> None:
    with pytest.raises(ConfigError, match="lora_rank is 2, but the encoder has no blocks with linear layers"):
        changes = {"data.modalities": ["eeg"], "model.eeg": {"kind": "bandpower"}, "train.encoders.eeg.lora_rank": 2}
        build(override(Experiment(), changes))
    for key in ("lora_rank", "trained_blocks"):
        with pytest.raises(ConfigError, match=f"{key} is 2, but with encoder_lr_scale=0 nothing of the encoder learns"):
            make_experiment("ast", encoder_lr_scale=0.0, **{key: 2})


def test_an_encoder_of_one_module_has_no_blocks() -> None:
    class Plain(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Sequential(nn.Linear(2, 2), nn.ReLU())

    assert Plain().list_blocks() == [] and Plain().group_parameters() == [["map.0.weight", "map.0.bias"]]

"""Encoders of which only the last blocks learn, and blocks that learn at rates of their own."""

from typing import Any

import pytest
import torch
from torch import nn

from eav_ray.config import Experiment, override
from eav_ray.errors import ConfigError
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes, Encoder
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


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def make_experiment(kind: str, **optim: Any) -> Experiment:
    modality, keys, _ = ENCODERS[kind]
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


def test_an_encoder_of_one_module_has_no_blocks() -> None:
    class Plain(Encoder):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Sequential(nn.Linear(2, 2), nn.ReLU())

    assert Plain().list_blocks() == [] and Plain().group_parameters() == [["map.0.weight", "map.0.bias"]]

"""The paper's decoder on EEGformer alone: sizes, order of time, and every way in which a head is called."""

from typing import Any

import pytest
import torch
from torch import nn

from eav_ray.config import Experiment, override
from eav_ray.errors import ConfigError
from eav_ray.models.classifier import Classifier, HeadClassifier
from eav_ray.models.encoders.base import DataShapes, TokenHead
from eav_ray.models.encoders.factory import build_encoder
from eav_ray.training.cost import compute_model_cost

SHAPES = DataShapes(5, 4)
SMALL = {"filters": 4, "width": 16, "temporal_width": 32, "segments": 4, "depth": 1, "heads": 2}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def make_experiment(**changes: Any) -> Experiment:
    sizes = SMALL | {"decoder": "convolutional"} | changes
    common = {"data.modalities": ["eeg"], "preprocessing.window_s": 2, "preprocessing.eeg.hz": 100}
    return override(Experiment(), common | {f"model.eeg.{k}": v for k, v in sizes.items()})


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_decoder_has_the_parameters_of_three_convolutions_and_a_linear_layer() -> None:
    e = override(Experiment(), {"model.eeg.decoder": "convolutional"})
    head = build_encoder(e, "eeg", DataShapes(30, 5)).build_head(5)  # 8 tokens of 256
    layers = [(256 + 1) * 64, (64 + 1) * 16, (8 + 1) * 4, (4 * 16 + 1) * 5]
    assert count_parameters(head) == sum(layers) == 17_849
    assert [type(m) for m in head.modules() if not list(m.children())].count(nn.Conv1d) == 3


@pytest.mark.parametrize(("temporal_width", "segments"), [(2, 1), (4, 2), (32, 16)])
def test_the_smallest_sizes_have_a_decoder_too(temporal_width: int, segments: int) -> None:
    e = make_experiment(temporal_width=temporal_width, segments=segments)
    out = Classifier(e, SHAPES)({"eeg": torch.randn(3, 5, 200)}, torch.ones(3, 1, dtype=torch.bool))
    assert out.logits_BK.shape == (3, 4) and out.logits_BK.isfinite().all()


def test_the_order_of_time_segments_matters_to_the_decoder_alone() -> None:
    tokens = torch.randn(3, 4, 32)
    shuffled = tokens[:, [2, 0, 3, 1]]
    head = build_encoder(make_experiment(), "eeg", SHAPES).build_head(4)
    assert isinstance(head, TokenHead) and head(tokens).shape == (3, 4)
    assert not torch.allclose(head(tokens), head(shuffled), atol=1e-3)
    pooled = build_encoder(make_experiment(decoder="pooled"), "eeg", SHAPES).build_head(4)
    torch.testing.assert_close(pooled(tokens.mean(1)), pooled(shuffled.mean(1)))


def test_the_decoder_is_no_linear_map() -> None:
    head = build_encoder(make_experiment(), "eeg", SHAPES).build_head(4)
    x, y = torch.randn(2, 3, 4, 32)
    assert not torch.allclose(head(x + y) - head(y), head(x) - head(torch.zeros_like(x)), atol=1e-3)


def test_encoder_and_decoder_learn_through_each_other() -> None:
    model = Classifier(make_experiment(), SHAPES)
    model({"eeg": torch.randn(3, 5, 200)}, torch.ones(3, 1, dtype=torch.bool)).logits_BK.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_decoder_on_cached_tokens_is_the_one_inside_a_classifier() -> None:
    model = Classifier(make_experiment(), SHAPES).eval()
    present = torch.ones(3, 1, dtype=torch.bool)
    encoded, logits = model.encode({"eeg": torch.randn(3, 5, 200)}, present)
    cached = {f"eeg.{k}": v for k, v in zip(("tokens", "mask", "pooled"), encoded["eeg"], strict=True)}
    found = HeadClassifier(model).eval()(cached, present)
    assert torch.equal(found.logits_BK, logits["eeg"])


def test_under_a_fusion_the_decoder_is_a_probe_that_pulls_at_nothing() -> None:
    audio = {"kind": "mfcc", "segments": 2}
    e = override(make_experiment(), {"data.modalities": ["audio", "eeg"], "model.audio": audio, "fusion.width": 16})
    model = Classifier(e, SHAPES)
    inputs = {"eeg": torch.randn(3, 5, 200), "audio": torch.rand(3, 32_000) - 0.5}
    out = model(inputs, torch.ones(3, 2, dtype=torch.bool))
    out.unimodal_logits["eeg"].square().sum().backward()
    assert all(p.grad is None for p in model.encoders.parameters())
    assert all(p.grad is not None for p in model.heads["eeg"].parameters())


@pytest.mark.parametrize("cost", ["parameters", "gmac"])
def test_the_decoder_counts_in_a_models_cost(cost: str) -> None:
    pooled, decoded = (
        compute_model_cost(override(make_experiment(decoder=d), {"search.cost": cost}), SHAPES)
        for d in ("pooled", "convolutional")
    )
    # Of 4 tokens of 32: 32 x 8 and 8 x 2 a token, 4 x 2 for each of 2 features, and 4 x 4; a linear layer has 32 x 4.
    layers = {"parameters": 33 * 8 + 9 * 2 + 5 * 2 + 5 * 4 - 33 * 4}
    layers["gmac"] = (4 * 32 * 8 + 4 * 8 * 2 + 2 * 4 * 2 + 4 * 4 - 32 * 4) / 1e9
    assert decoded - pooled == pytest.approx(layers[cost])


def test_another_decoder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.eeg\.decoder"):
        make_experiment(decoder="linear")

"""Image networks of timm: the pooled features of each frame, from weights as timm saves them."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import save_for_hf
from torch import Tensor

from eav_ray.config import Experiment, override
from eav_ray.config.published import adopt_published_settings
from eav_ray.errors import ConfigError
from eav_ray.models.encoders.backbone import Backbone
from eav_ray.models.encoders.base import DataShapes
from eav_ray.models.encoders.factory import build_encoder

SIZE, FRAMES = 64, 3
# Name and width: two that normalise by batches, one whose pooled features pass a layer more, one of fixed size.
NETWORKS = {"efficientnet_b0": 1280, "mobilenetv3_small_050": 1024, "convnext_atto": 320, "vit_tiny_patch16_224": 192}
networks = pytest.mark.parametrize("name", NETWORKS)
PRESENT = torch.ones(2, dtype=torch.bool)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def save_network(name: str, folder: Path, **changes: Any) -> Any:
    """Save a network with random weights as timm does for a hub, and return it."""
    fixed = {"img_size": SIZE} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=7, **fixed).eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.02 * torch.rand_like(tensor))
    save_for_hf(model, folder, safe_serialization=True)
    document = json.loads((folder / "config.json").read_text())
    document["pretrained_cfg"] |= changes
    (folder / "config.json").write_text(json.dumps(document))
    return model


def build_backbone(folder: Path, **changes: Any) -> Backbone:
    """Build and load the encoder as a job does."""
    e = override(
        Experiment(),
        {
            "preprocessing.video.size": SIZE,
            "model.video": {"kind": "backbone", "weights": str(folder), "frames": FRAMES} | changes,
        },
    )
    encoder = build_encoder(adopt_published_settings(e), "video", DataShapes(1, 5))
    assert isinstance(encoder, Backbone)
    encoder.load_pretrained(str(folder))
    return encoder.eval()


def make_windows() -> Tensor:
    return torch.randint(0, 256, (2, 25, SIZE, SIZE, 3), dtype=torch.uint8)


@networks
def test_tokens_are_the_librarys_pooled_features_of_frames_on_its_scale(name: str, tmp_path: Path) -> None:
    colours = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}  # the weights' own, not the network's
    model = save_network(name, tmp_path, **colours)
    encoder, x = build_backbone(tmp_path, width=NETWORKS[name]), make_windows()
    mean, sd = (torch.tensor(v).view(3, 1, 1) for v in colours.values())
    with torch.no_grad():
        found = encoder(x, PRESENT).tokens_BND - encoder.position
        for row in range(2):
            for k, frame in enumerate(encoder.frame_indices):
                image = (x[row, frame].permute(2, 0, 1) / 255 - mean) / sd
                expected = model.forward_head(model.forward_features(image[None]), pre_logits=True)[0]
                torch.testing.assert_close(found[row, k], expected, rtol=1e-4, atol=1e-5)


@networks
def test_the_scale_is_timms_where_the_weights_say_none(name: str, tmp_path: Path) -> None:
    model = save_network(name, tmp_path)
    encoder = build_backbone(tmp_path / "model.safetensors", width=NETWORKS[name], name=name)
    settings = resolve_model_data_config(model)
    assert encoder.mean.flatten().tolist() == pytest.approx(settings["mean"])
    assert encoder.sd.flatten().tolist() == pytest.approx(settings["std"])


def test_statistics_of_batches_stay_those_of_the_weights_in_training(tmp_path: Path) -> None:
    save_network("efficientnet_b0", tmp_path)
    encoder, x = build_backbone(tmp_path, width=1280), make_windows()
    before = {n: b.clone() for n, b in encoder.named_buffers()}
    expected = encoder(x, PRESENT).tokens_BND
    torch.testing.assert_close(encoder.train()(x, PRESENT).tokens_BND, expected)
    assert all(torch.equal(b, before[n]) for n, b in encoder.named_buffers())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("convnext_atto", {"global_pool": "max"}),
        ("convnext_atto", {"act_layer": "relu"}),
        ("vit_tiny_patch16_224", {"num_heads": 6}),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": False}),
        ("efficientnet_b0", {"global_pool": "max"}),
        ("efficientnet_b0", {"output_stride": 16}),
        ("resnet18", {"global_pool": "avgmax"}),
    ],
)
def test_a_network_that_was_made_otherwise_is_refused(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    """Its tensors have the same shapes, and another meaning."""
    size = {"img_size": SIZE} if name.startswith("vit") else {}
    save_for_hf(timm.create_model(name, **arguments, **size), tmp_path, safe_serialization=True)
    with pytest.raises(ConfigError, match=f"of a network that was made with .*{next(iter(arguments))}="):
        build_backbone(tmp_path, width=(NETWORKS | {"resnet18": 512})[name])


def test_nothing_is_drawn_in_training_without_dropout() -> None:
    changes = {"kind": "backbone", "name": "swin_tiny_patch4_window7_224", "width": 768, "frames": 1}
    e = override(Experiment(), {"preprocessing.video.size": SIZE, "model.video": changes})
    encoder, x = build_encoder(e, "video", DataShapes(1, 5)).train(), make_windows()
    with torch.no_grad():
        assert torch.equal(encoder(x, PRESENT).tokens_BND, encoder(x, PRESENT).tokens_BND)


def test_a_network_may_be_named_with_the_tag_of_its_weights(tmp_path: Path) -> None:
    save_network("convnext_atto", tmp_path)
    assert build_backbone(tmp_path, name="convnext_atto.d2_in1k").name == "convnext_atto.d2_in1k"


def test_gradient_checkpointing_that_a_network_cannot_do_is_a_line() -> None:
    e = override(Experiment(), {"model.video": {"kind": "backbone", "name": "pit_ti_224", "width": 256}})
    with pytest.raises(ConfigError, match=r"gradient_checkpointing is true, which pit_ti_224 of timm cannot do"):
        build_encoder(e, "video", DataShapes(1, 5)).enable_gradient_checkpointing()


def test_a_tensor_that_is_renamed_or_missing_is_refused(tmp_path: Path) -> None:
    save_network("convnext_atto", tmp_path)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    name = "stages.1.blocks.0.mlp.fc1.weight"
    for changed, message in (
        ({n.replace(".mlp.fc1.", ".mlp.first."): t for n, t in state.items()}, "has no place"),
        ({n: t for n, t in state.items() if n != name}, f"has no tensor {name}"),
    ):
        safetensors.torch.save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(ConfigError, match=message):
            build_backbone(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "convnext_ato"}, 'name is "convnext_ato", which timm does not have; did you mean "convnext_atto"'),
        (
            {"name": "resnet18", "width": 512},
            "normalises by batches and cannot be trained from random values here; give",
        ),
        ({"name": "xcit_nano_12_p16_224", "width": 128}, "does not take frames of 60 x 60 pixels"),
        ({"width": 768}, "width is 768, but convnext_atto makes 320; leave it out"),
        ({"name": "vit_tiny_patch16_224", "width": 192}, "whose patches of 16 pixels do not divide frames of 60"),
        ({"mean": [0.5]}, r"mean is \[0\.5\]; give one number each for red, green and blue"),
        ({"sd": [0.5, 0.0, 0.5]}, r"sd is \[0\.5, 0\.0, 0\.5\]; give"),
        ({"frames": 26}, "frames is 26, but a stored window has 25"),
    ],
)
def test_what_makes_no_network_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        e = override(Experiment(), {"preprocessing.video.size": 60, "model.video": {"kind": "backbone"} | changes})
        build_encoder(e, "video", DataShapes(1, 5))

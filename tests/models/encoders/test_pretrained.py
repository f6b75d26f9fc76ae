"""Published weights give the published outputs, whichever library and version named them; wrong ones are refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor
from transformers import ASTConfig, ASTForAudioClassification, ASTModel, ViTConfig, ViTForImageClassification, ViTModel

from eav_ray.config import Experiment, override
from eav_ray.errors import ConfigError
from eav_ray.models.encoders.eegformer import EEGformer
from eav_ray.models.encoders.vit import ViT
from eav_ray.storage import hash_content
from tests.helpers.classifiers import AST_SIZES, make_ast

PRESENT = torch.ones(2, dtype=torch.bool)
VIT_SIZES = AST_SIZES | dict(image_size=32, patch_size=8)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def awake(model: Any) -> Any:
    """Random everywhere: fresh biases, norms and positions are zeros and ones, and would hide a wrong place."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def vit(**changes: Any) -> ViT:
    sizes: dict[str, Any] = dict(
        image_size=32, patch=8, width=24, depth=2, heads=2, dropout=0.0, frames=2, n_stored_frames=2
    )
    return ViT("vit_base_patch16_224", window_s=1, **({"norm_eps": 1e-12} | sizes | changes)).eval()


def older(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The names that transformers 4 gave: what most files on the hub hold."""
    found = {}
    for name, tensor in state.items():
        name = re.sub(r"^layers\.", "encoder.layer.", name)
        name = re.sub(r"\.attention\.q_proj\.", ".attention.attention.query.", name)
        name = re.sub(r"\.attention\.k_proj\.", ".attention.attention.key.", name)
        name = re.sub(r"\.attention\.v_proj\.", ".attention.attention.value.", name)
        name = name.replace(".attention.o_proj.", ".attention.output.dense.")
        name = name.replace(".mlp.fc1.", ".intermediate.dense.").replace(".mlp.fc2.", ".output.dense.")
        found[prefix + name] = tensor.clone()
    return found


def test_ast_at_full_length_is_the_librarys_model_on_its_weights(tmp_path: Path) -> None:
    reference = awake(ASTModel(ASTConfig(**AST_SIZES)))
    reference.save_pretrained(tmp_path)
    ours = make_ast(1024)
    ours.load_pretrained(str(tmp_path))
    x = torch.rand(2, 80_000) * 2 - 1
    with torch.no_grad():
        features = ours.filter_bank(x)
        expected, found = reference(features), ours.model(features)
        out = ours(x, PRESENT)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.pooled_BD, expected.pooler_output, rtol=0, atol=1e-5)


@pytest.mark.parametrize("names", ["transformers 5", "transformers 4", "classifier"])
def test_ast_takes_the_files_of_both_versions_and_a_classifiers(names: str, tmp_path: Path) -> None:
    whole = awake(ASTForAudioClassification(ASTConfig(**AST_SIZES)))
    body = whole.audio_spectrogram_transformer
    whole.save_pretrained(tmp_path)
    if names != "classifier":
        state = older(body.state_dict(), "audio_spectrogram_transformer.")
        state = state if names == "transformers 4" else dict(body.state_dict())
        safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    ours = make_ast(1024)
    ours.load_pretrained(str(tmp_path))
    for name, tensor in body.state_dict().items():
        assert torch.equal(ours.model.state_dict()[name], tensor), name


def test_a_shorter_ast_keeps_the_centre_of_the_position_table(tmp_path: Path) -> None:
    reference = awake(ASTModel(ASTConfig(**AST_SIZES)))
    reference.save_pretrained(tmp_path)
    ours = make_ast(512)
    ours.load_pretrained(str(tmp_path))
    table = reference.embeddings.position_embeddings
    mine = ours.model.embeddings.position_embeddings
    assert torch.equal(mine[:, :2], table[:, :2])
    start = (101 - 50) // 2
    for band in range(12):
        for t in range(50):
            assert torch.equal(mine[0, 2 + band * 50 + t], table[0, 2 + band * 101 + start + t])


@pytest.mark.parametrize("names", ["transformers 5", "transformers 4", "classifier"])
def test_a_vit_of_transformers_gives_equal_outputs_in_timm(names: str, tmp_path: Path) -> None:
    """fp32, one forward pass, LayerNorm eps 1e-12 included."""
    reference = awake(ViTModel(ViTConfig(**VIT_SIZES), add_pooling_layer=False))
    reference.save_pretrained(tmp_path)
    if names == "transformers 5":  # which itself saves the older names
        safetensors.torch.save_file(dict(reference.state_dict()), tmp_path / "model.safetensors")
    if names == "transformers 4":
        safetensors.torch.save_file(older(reference.state_dict(), "vit."), tmp_path / "model.safetensors")
    if names == "classifier":
        whole = ViTForImageClassification(ViTConfig(**VIT_SIZES)).eval()
        whole.vit.load_state_dict(reference.state_dict())
        whole.save_pretrained(tmp_path)
    ours = vit()
    ours.load_pretrained(str(tmp_path))
    pixels = 1e-5 * torch.randn(3, 3, 32, 32)  # so quiet that the epsilon of a LayerNorm shows
    with torch.no_grad():
        expected = reference(pixels).last_hidden_state
        found = ours.model.forward_features(pixels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_wrong_epsilon_is_refused_because_it_would_not_be_seen(tmp_path: Path) -> None:
    ViTModel(ViTConfig(**VIT_SIZES)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"layer_norm_eps is 1e-12 there and 1e-06 here \(model\.video\.norm_eps\)"):
        ViT("vit_base_patch16_224", window_s=1, **SIZES).load_pretrained(str(tmp_path))


SIZES: dict[str, Any] = dict(
    image_size=32, patch=8, width=24, depth=2, heads=2, dropout=0.0, frames=2, n_stored_frames=2, norm_eps=1e-6
)


def test_pixels_on_another_scale_are_refused(tmp_path: Path) -> None:
    ViTModel(ViTConfig(**VIT_SIZES)).save_pretrained(tmp_path)
    scale = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(scale))
    with pytest.raises(ConfigError, match="image_mean"):
        vit().load_pretrained(str(tmp_path))


def test_a_scale_that_fits_is_accepted_however_it_is_rounded(tmp_path: Path) -> None:
    ViTModel(ViTConfig(**VIT_SIZES), add_pooling_layer=False).save_pretrained(tmp_path)
    scale = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(scale))
    ViT("vit_base_patch16_224.dino", window_s=1, **SIZES | {"norm_eps": 1e-12}).load_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "layer_norm_eps", "tiny"),
        ("config.json", "num_attention_heads", None),
        ("config.json", "hidden_act", "quick_gelu"),
        ("preprocessor_config.json", "image_mean", None),
        ("preprocessor_config.json", "image_std", 0.229),
        ("preprocessor_config.json", "image_mean", [0.5, 0.5]),
    ],
)
def test_odd_facts_beside_the_weights_are_a_line(file: str, key: str, value: Any, tmp_path: Path) -> None:
    ViTModel(ViTConfig(**VIT_SIZES), add_pooling_layer=False).save_pretrained(tmp_path)
    facts = json.loads((tmp_path / file).read_text()) if (tmp_path / file).exists() else {}
    (tmp_path / file).write_text(json.dumps(facts | {key: value}))
    with pytest.raises(ConfigError, match=f"{key} is .* there and"):
        vit().load_pretrained(str(tmp_path))


def test_a_config_that_is_no_object_is_a_line(tmp_path: Path) -> None:
    ViTModel(ViTConfig(**VIT_SIZES), add_pooling_layer=False).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="no JSON object"):
        vit().load_pretrained(str(tmp_path))


def test_the_statistics_of_another_spectrogram_are_refused(tmp_path: Path) -> None:
    ASTModel(ASTConfig(**AST_SIZES)).save_pretrained(tmp_path)
    facts = {"mean": -6.845978, "std": 5.5654526}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match="mean is -6.845978 there"):
        make_ast().load_pretrained(str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"mean": -4.2677393, "std": 4.5689974}))
    make_ast(1024).load_pretrained(str(tmp_path))


def test_tensors_for_which_there_is_no_place_are_refused(tmp_path: Path) -> None:
    """LayerScale, as in DINOv2, changes every output and no shape of what is taken."""
    sizes = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=0)
    other = timm.create_model("vit_base_patch16_224", init_values=1e-5, **sizes)
    safetensors.torch.save_file(other.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"blocks\.0\.ls1\.gamma and 3 more.*another model"):
        vit().load_pretrained(str(tmp_path))


@pytest.mark.parametrize("arguments", [{"num_heads": 4}, {}])
def test_heads_and_epsilon_of_what_timm_has_saved_must_fit(arguments: dict[str, int], tmp_path: Path) -> None:
    """Another number of heads moves all outputs, and no shape shows it."""
    heads = arguments.get("num_heads", 3)  # timm's own of this network
    sizes = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_classes=0) | arguments
    published = timm.create_model("vit_tiny_patch16_224", **sizes)
    save_for_hf(published, tmp_path, safe_serialization=True)
    with pytest.raises(ConfigError, match=f"num_attention_heads is {heads} there and 2 here") as caught:
        vit().load_pretrained(str(tmp_path))
    assert "layer_norm_eps is 1e-06 there and 1e-12 here" in str(caught.value)
    scale = {"name": "vit_tiny_patch16_224", "heads": heads, "norm_eps": 1e-6}
    ours = ViT(window_s=1, **SIZES | scale)
    ours.load_pretrained(str(tmp_path))
    assert all(torch.equal(t, published.state_dict()[n]) for n, t in ours.model.state_dict().items())


def test_a_vit_of_timm_is_taken_from_its_file(tmp_path: Path) -> None:
    other = awake(
        timm.create_model(
            "vit_base_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=7
        )
    )
    safetensors.torch.save_file(other.state_dict(), tmp_path / "mine.safetensors")
    ours = vit()
    ours.load_pretrained(str(tmp_path / "mine.safetensors"))
    for name, tensor in ours.model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


def damage(folder: Path, how: str) -> str:
    file = folder / "model.safetensors"
    state = safetensors.torch.load_file(file)
    match how:
        case "no file":
            file.unlink()
        case "pickle":
            file.unlink()
            torch.save(state, folder / "pytorch_model.bin")
        case "cut":
            file.write_bytes(file.read_bytes()[:1000])
        case "no tensor":
            state.pop("encoder.layer.1.output.dense.bias")
            safetensors.torch.save_file(state, file)
        case "shape":
            state["encoder.layer.1.output.dense.bias"] = torch.zeros(25)
            safetensors.torch.save_file(state, file)
        case "not finite":
            state["layernorm.weight"][3] = float("nan")
            safetensors.torch.save_file(state, file)
        case _:
            assert how == "nowhere"
            return str(folder / "elsewhere")
    return str(folder)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no file", "no .safetensors file"),
        ("pickle", "no .safetensors file.*can run code"),
        ("cut", "cannot be read"),
        ("no tensor", "has no tensor .*layers.1.mlp.fc2.bias"),
        ("shape", r"layers.1.mlp.fc2.bias is \(25,\), but the experiment's sizes make it \(24,\)"),
        ("not finite", "layernorm.weight has values that are not finite"),
        ("nowhere", "is not on this node"),
    ],
)
def test_weights_that_do_not_fit_are_a_line(how: str, said: str, tmp_path: Path) -> None:
    ASTModel(ASTConfig(**AST_SIZES)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=said) as caught:
        make_ast().load_pretrained(damage(tmp_path, how))
    assert "model.audio.weights" in str(caught.value) and "\n" not in str(caught.value)


def test_other_sizes_are_refused_by_name(tmp_path: Path) -> None:
    ASTModel(ASTConfig(**AST_SIZES)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"set the sizes under model\.audio"):
        make_ast(width=48).load_pretrained(str(tmp_path))
    with pytest.raises(ConfigError, match=r"num_attention_heads is 2 there and 4 here \(model\.audio\.heads\)"):
        make_ast(heads=4).load_pretrained(str(tmp_path))
    with pytest.raises(ConfigError, match=r"stride is 10 there and 16 here \(model\.audio\.stride\)"):
        make_ast(stride=16).load_pretrained(str(tmp_path))
    with pytest.raises(ConfigError, match="EEGformer has no published weights"):
        sizes = dict(filters=4, width=16, temporal_width=16, segments=4, depth=1, heads=4, dropout=0.0)
        EEGformer(5, 100, window_s=1, **sizes).load_pretrained(str(tmp_path))


def test_a_patch_that_does_not_fit_the_frames_is_refused_before_training() -> None:
    with pytest.raises(ConfigError, match="patch is 14, which does not divide image_size 64"):
        override(Experiment(), {"model.video.patch": 14, "model.video.image_size": 64, "preprocessing.video.size": 64})


def test_content_names_what_a_folder_holds(tmp_path: Path) -> None:
    file = tmp_path / "one" / "model.safetensors"
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "model.safetensors").write_bytes(b"weights")
    before = hash_content(str(tmp_path / "one"))
    assert before == hash_content(str(tmp_path / "two"))
    file.write_bytes(b"other weights")
    assert hash_content(str(tmp_path / "one")) != before
    assert hash_content("MIT/ast-finetuned-audioset-10-10-0.4593") == "MIT/ast-finetuned-audioset-10-10-0.4593"

"""The network of the AST is that of transformers: the same first weights, outputs, gradients and names."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import ASTConfig, ASTModel

from eav_ray.models.encoders.ast_network import ASTNetwork
from tests.helpers.paths import REPOSITORY

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
WIDTH, DEPTH, HEADS, MAX_LENGTH = 48, 3, 4, 98


def build_both(stride: int, dropout: float) -> tuple[ASTNetwork, ASTModel]:
    n_patches = ((128 - 16) // stride + 1) * ((MAX_LENGTH - 16) // stride + 1)
    torch.manual_seed(3)
    own = ASTNetwork(width=WIDTH, depth=DEPTH, heads=HEADS, n_patches=n_patches, stride=stride, dropout=dropout)
    torch.manual_seed(3)
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
    sizes |= {"intermediate_size": 4 * WIDTH, "max_length": MAX_LENGTH}
    sizes |= {"time_stride": stride, "frequency_stride": stride}
    sizes |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": 0.0}
    return own, ASTModel(ASTConfig(**sizes))


@pytest.mark.parametrize(("stride", "dropout"), [(16, 0.0), (10, 0.3)])
def test_weights_outputs_and_gradients_are_equal(stride: int, dropout: float) -> None:
    own, theirs = build_both(stride, dropout)
    assert list(own.state_dict()) == list(theirs.state_dict())
    for name, tensor in own.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name
    x = torch.randn(2, MAX_LENGTH, 128)
    for training in (False, True):
        torch.manual_seed(0)
        tokens, pooled = own.train(training)(x)
        torch.manual_seed(0)
        expected = theirs.train(training)(x)
        assert torch.equal(tokens, expected.last_hidden_state) and torch.equal(pooled, expected.pooler_output)
    pooled.square().sum().backward()
    expected.pooler_output.square().sum().backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in own.named_parameters():
        found, wanted = parameter.grad, gradients[name].grad
        assert found is not None and wanted is not None and torch.equal(found, wanted), name


def test_recomputed_activations_change_nothing() -> None:
    own, _ = build_both(16, 0.2)
    x, found = torch.randn(2, MAX_LENGTH, 128), []
    for own.recomputes_activations in (False, True):
        own.zero_grad()
        torch.manual_seed(1)
        own.train()(x).pooled_BD.square().sum().backward()
        found.append([p.grad.clone() for p in own.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)) and len(found[0]) == len(found[1]) > 0


def test_an_ast_is_built_without_transformers() -> None:
    code = "import sys\nfrom eav_ray.config import load_experiment\nfrom eav_ray.models.classifier import Classifier\n"
    code += (
        "from eav_ray.models.encoders.base import DataShapes\nClassifier(load_experiment('demo'), DataShapes(30, 5))\n"
    )
    code += "print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr

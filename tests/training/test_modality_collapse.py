"""A fusion that does not use what it is given is told so, with the number; one that does is left in peace."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from eav_ray.config import MODALITIES
from eav_ray.models.classifier import FusionClassifier
from eav_ray.models.fusion.base import Fusion
from eav_ray.models.fusion.bottleneck import BottleneckFusion
from eav_ray.models.fusion.gated import GatedFusion
from eav_ray.models.fusion.mean import MeanFusion
from eav_ray.models.fusion.product import ProductFusion
from eav_ray.models.fusion.shared_attention import SharedAttentionFusion
from eav_ray.models.fusion.single_token import SingleTokenFusion
from eav_ray.training.dataloader import Batch
from eav_ray.training.losses import compute_losses
from eav_ray.training.modality_collapse import find_modality_collapse

WIDTHS, TOKENS, N = dict.fromkeys(MODALITIES, 8), 4, 64
TIMES = {m: torch.arange(TOKENS) / TOKENS for m in MODALITIES}
CPU = torch.device("cpu")


def make_batch(n: int = N, used: tuple[str, ...] = MODALITIES) -> Batch:
    """Each modality of `used` tells of the class a part that the others do not."""
    draw = torch.Generator().manual_seed(3)
    bits = torch.randint(0, 2, (n, 3), generator=draw)
    inputs: dict[str, Tensor] = {}
    label = torch.zeros(n, dtype=torch.long)
    for column, m in enumerate(MODALITIES):
        signal = (2.0 * bits[:, column] - 1)[:, None, None] if m in used else torch.zeros(n, 1, 1)
        inputs[f"{m}.tokens"] = signal + 0.3 * torch.randn(n, TOKENS, 8, generator=draw)
        inputs[f"{m}.mask"] = torch.ones(n, TOKENS, dtype=torch.bool)
        inputs[f"{m}.pooled"] = inputs[f"{m}.tokens"].mean(1)
        inputs[f"{m}.logits"] = torch.zeros(n, 8)
        label += bits[:, column] * (2**column) if m in used else 0
    return Batch(inputs, torch.ones(n, 3, dtype=torch.bool), label, torch.ones(n), n, 0)


def trained(fusion: Fusion, batch: Batch, steps: int = 60) -> FusionClassifier:
    module = FusionClassifier(fusion, list(MODALITIES))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for step in range(steps):
        present = batch.present_BM.clone()
        if step % 2:
            present[:, step // 2 % 3] = False  # modality dropout
        loss = nn.functional.cross_entropy(module(batch.inputs, present).logits_BK, batch.label_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module


def attention() -> SharedAttentionFusion:
    return SharedAttentionFusion(WIDTHS, TIMES, window_s=1, n_outputs=8, width=16, heads=4, dropout=0.0)


def bottleneck() -> BottleneckFusion:
    sizes = dict(width=16, heads=4, depth=1, bottlenecks=2)
    return BottleneckFusion(WIDTHS, TIMES, window_s=1, n_outputs=8, dropout=0.0, **sizes)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    "make", [attention, bottleneck, lambda: GatedFusion(WIDTHS, n_outputs=8, width=16, dropout=0.0)]
)
def test_a_fusion_that_needs_all_its_modalities_gets_no_warning(make: type[Fusion]) -> None:
    assert find_modality_collapse(trained(make(), make_batch()), [make_batch()], CPU) == []


def test_a_fusion_of_numbers_is_judged_by_the_error_of_its_numbers() -> None:
    """Of what three modalities tell, one is told by nothing but noise."""

    def make_numbers(used: tuple[str, ...]) -> Batch:
        batch = make_batch(used=used)
        bits = torch.stack([batch.inputs[f"{m}.tokens"].mean((1, 2)).sign() for m in used], 1)
        outputs = {f"{m}.logits": torch.zeros(N, 1) for m in MODALITIES}
        return replace(batch, inputs=batch.inputs | outputs, label_B=bits.sum(1, keepdim=True))

    def fit(batch: Batch) -> FusionClassifier:
        fusion = GatedFusion(WIDTHS, n_outputs=1, width=16, dropout=0.0)
        module = FusionClassifier(fusion, list(MODALITIES))
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
        for _ in range(60):
            loss = compute_losses(module(batch.inputs, batch.present_BM).logits_BK, batch.label_B).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return module

    whole, part = make_numbers(MODALITIES), make_numbers(MODALITIES[:2])
    assert find_modality_collapse(fit(whole), [whole], CPU) == []
    found = find_modality_collapse(FusionClassifier(MeanFusion(), list(MODALITIES)), [part], CPU)
    assert [f.check for f in found] == ["unused modality"] * 3  # all say 0, so that none is missed


def test_attention_over_one_token_is_found_by_its_key_and_by_its_dead_queries() -> None:
    module = trained(SingleTokenFusion(WIDTHS, n_outputs=8, heads=4, dropout=0.0), make_batch())
    found = find_modality_collapse(module, [make_batch()], CPU)
    assert [f.check for f in found] == ["single attention key", "dead queries and keys"]
    assert found[0].value == 1 and found[1].value < 1e-6
    assert "1 key" in found[0].text and "no gradient" in found[1].text


def test_a_modality_that_takes_all_the_weight_is_named_with_its_share() -> None:
    fusion = GatedFusion(WIDTHS, n_outputs=8, width=16, dropout=0.0)
    module = trained(fusion, make_batch())
    with torch.no_grad():
        fusion.gate.weight.zero_()
        fusion.gate.bias.copy_(torch.tensor([0.0, 9.0, 0.0]))
    found = find_modality_collapse(module, [make_batch()], CPU)
    (dominant,) = [f for f in found if f.check == "dominant modality"]
    assert dominant.value == 1.0 and dominant.text.startswith("eeg has more than 95% of the weight in 100.0%")


@pytest.mark.parametrize("make", [attention, bottleneck])
def test_a_modality_whose_removal_costs_nothing_is_named(make: type[Fusion]) -> None:
    """The class of the windows that judge does not depend on audio, and a part of their audio misleads."""
    module = trained(make(), make_batch())
    judged = make_batch()
    judged.inputs["audio.tokens"] = -judged.inputs["audio.tokens"]
    judged.inputs["audio.pooled"] = -judged.inputs["audio.pooled"]
    unused = [f for f in find_modality_collapse(module, [judged], CPU) if f.check == "unused modality"]
    assert [f.text.split()[1] for f in unused] == ["audio"]
    assert unused[0].value <= 0


def test_the_mean_of_logits_is_judged_by_what_its_modalities_add() -> None:
    batch = make_batch()
    for column, m in enumerate(MODALITIES):
        bit = (batch.label_B >> column) & 1
        for k in range(8):
            batch.inputs[f"{m}.logits"][:, k] = ((k >> column) & 1 == bit).float() * (0 if m == "video" else 4)
    batch.inputs["video.logits"] = 2 * torch.randn(N, 8)
    found = find_modality_collapse(FusionClassifier(ProductFusion(), list(MODALITIES)), [batch], CPU)
    assert [f.text.split()[1] for f in found] == ["video"]


def test_a_first_batch_that_tells_nothing_is_no_finding() -> None:
    """Windows with one modality, pooled tokens: one key. Labels that are not known."""
    fusion = SharedAttentionFusion(WIDTHS, TIMES, window_s=1, n_outputs=8, width=16, heads=4, dropout=0.0, pooled=True)
    module = trained(fusion, make_batch())
    alone, unknown = make_batch(8), make_batch(8)
    alone.present_BM[:, 1:] = False
    unknown.label_B[:5] = -1
    assert find_modality_collapse(module, [alone, unknown, make_batch()], CPU) == []


def test_a_fusion_that_has_fitted_its_windows_is_not_called_dead() -> None:
    fusion = attention()
    module = trained(fusion, make_batch())
    with torch.no_grad():
        for parameter in fusion.head[1].parameters():
            parameter.mul_(1000)
    assert not [f for f in find_modality_collapse(module, [make_batch()], CPU) if f.check == "dead queries and keys"]


def test_windows_with_one_modality_are_no_evidence() -> None:
    batch = make_batch()
    batch.present_BM[:, 1:] = False
    assert find_modality_collapse(trained(attention(), make_batch(), 1), [batch], CPU) == []

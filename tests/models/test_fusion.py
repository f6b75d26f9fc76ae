"""What is missing counts for nothing, bit for bit; what is present is weighed, and the weights sum to 1."""

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from eav_ray.config import MODALITIES
from eav_ray.errors import DataError
from eav_ray.models.build import FusionAlone, fuse
from eav_ray.models.encoder import Encoded
from eav_ray.models.fusion import LateMean, SharedAttention

WIDTHS = {"audio": 6, "eeg": 8, "video": 10}
TOKENS = {"audio": 5, "eeg": 3, "video": 4}
TIMES = {m: (torch.arange(n) + 0.5) * 2 / n for m, n in TOKENS.items()}
SUBSETS = [s for n in (1, 2, 3) for s in combinations(MODALITIES, n)]
N_OUTPUTS, BATCH = 5, 4

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.fixture
def seeded() -> None:
    torch.manual_seed(0)


def attention(
    names: tuple[str, ...] = MODALITIES, times: dict[str, Tensor] = TIMES, dropout: float = 0.0
) -> SharedAttention:
    torch.manual_seed(1)
    widths = {m: WIDTHS[m] for m in names}
    fusion = SharedAttention(widths, times, window_s=2, n_outputs=N_OUTPUTS, width=16, heads=4, dropout=dropout)
    nn.init.normal_(fusion.query)  # away from its small start, so that attention differs between tokens
    return fusion.eval()


FUSIONS = [attention, LateMean]


def encoded(n: int = BATCH, names: tuple[str, ...] = MODALITIES) -> tuple[dict[str, Encoded], dict[str, Tensor]]:
    tokens = {m: torch.randn(n, TOKENS[m], WIDTHS[m]) for m in names}
    real = {m: torch.ones(n, TOKENS[m], dtype=torch.bool) for m in names}
    return {m: Encoded(t, real[m], t.mean(1)) for m, t in tokens.items()}, {m: torch.randn(n, N_OUTPUTS) for m in names}


def everyone(n: int = BATCH) -> Tensor:
    return torch.ones(n, 3, dtype=torch.bool)


def only(subset: tuple[str, ...], n: int = BATCH) -> Tensor:
    return torch.tensor([m in subset for m in MODALITIES]).expand(n, 3)


@pytest.mark.parametrize("content", [float("nan"), float("inf"), 1e9])
@pytest.mark.parametrize("make", FUSIONS)
def test_the_content_of_padding_changes_no_bit(make: type[nn.Module], content: float) -> None:
    fusion, present = make(), everyone()
    present[0, 0] = present[1, 2] = present[2, 1] = False
    parts, logits = encoded()
    parts["audio"].mask_BN[3, 3:] = False
    before = fusion(parts, logits, present)
    for column, m in enumerate(MODALITIES):
        hidden = ~(parts[m].mask_BN & present[:, column, None])
        parts[m].tokens_BND[hidden] = content
        logits[m][~present[:, column]] = content
    after = fusion(parts, logits, present)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("make", FUSIONS)
def test_gradients_do_not_see_the_content_of_padding(make: type[nn.Module]) -> None:
    fusion = make()
    parts, logits = encoded()
    leaves = [*(e.tokens_BND for e in parts.values()), *logits.values()]
    for leaf in leaves:
        leaf[0] = float("nan")
        leaf.requires_grad_()
    present = everyone()
    parts["eeg"].tokens_BND.data[0], logits["eeg"].data[0] = 0.5, 0.5
    present[0] = only(("eeg",), 1)[0]
    fusion(parts, logits, present).logits_BK.square().sum().backward()
    grads = [p.grad for p in [*fusion.parameters(), *leaves] if p.grad is not None]
    assert grads and all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("make", FUSIONS)
def test_the_order_in_which_modalities_are_named_changes_nothing(make: type[nn.Module]) -> None:
    fusion = make()
    parts, logits = encoded()
    before = fusion(parts, logits, everyone())
    other = dict(reversed(parts.items())), dict(reversed(logits.items()))
    if isinstance(fusion, SharedAttention):
        turned = attention(tuple(reversed(MODALITIES)))
        turned.load_state_dict(fusion.state_dict())
        fusion = turned
    for one, another in zip(before, fusion(*other, everyone()), strict=True):
        assert torch.equal(one, another)


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
@pytest.mark.parametrize("make", FUSIONS)
def test_each_subset_trains_and_what_is_missing_weighs_exactly_nothing(
    make: type[nn.Module], subset: tuple[str, ...]
) -> None:
    fusion = make().train()
    parts, logits = encoded()
    for part in logits.values():
        part.requires_grad_()
    fused = fusion(parts, logits, only(subset))
    assert fused.logits_BK.isfinite().all()
    for weights in (fused.weights_BM, fused.corrected_BM):
        assert ((weights == 0) == ~only(subset)).all()
        torch.testing.assert_close(weights.sum(1), torch.ones(BATCH))
    nn.functional.cross_entropy(fused.logits_BK, torch.arange(BATCH)).backward()
    grads = [p.grad for p in fusion.parameters()] or [logits[m].grad for m in subset]
    assert all(g is not None and g.isfinite().all() for g in grads)
    assert any(g is not None and g.abs().sum() > 0 for g in grads)


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_a_missing_modality_is_as_if_it_had_never_been_there(subset: tuple[str, ...]) -> None:
    whole, part = attention(), attention(subset)
    part.load_state_dict({k: v for k, v in whole.state_dict().items() if k in part.state_dict()})
    parts, logits = encoded()
    masked = whole(parts, logits, only(subset)).logits_BK
    alone = part({m: parts[m] for m in subset}, {m: logits[m] for m in subset}, everyone()[:, : len(subset)]).logits_BK
    torch.testing.assert_close(masked, alone, rtol=1e-5, atol=1e-6)


def test_a_sample_with_nothing_is_an_error_and_not_a_number() -> None:
    parts, logits = encoded()
    present = everyone()
    present[2] = False
    for fusion in (attention(), LateMean(), None):
        with pytest.raises(DataError, match="none of the modalities"):
            fuse(fusion, parts, logits, present)


def test_late_mean_is_the_mean_of_the_logits_that_are_present() -> None:
    parts, logits = encoded()
    for subset in SUBSETS:
        expected = torch.stack([logits[m] for m in subset]).mean(0)
        torch.testing.assert_close(LateMean()(parts, logits, only(subset)).logits_BK, expected)


def test_attention_reads_its_tokens_as_torchs_attention_does() -> None:
    fusion = attention()
    parts, logits = encoded()
    reference = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([fusion.q.weight, fusion.kv.weight]))
        reference.in_proj_bias.copy_(torch.cat([fusion.q.bias, fusion.kv.bias]))
        reference.out_proj.load_state_dict(fusion.proj.state_dict())
    tokens = [
        fusion.inputs[m](parts[m].tokens_BND) + fusion.modality[m] + fusion.time(fusion.get_buffer(f"clock_{m}"))
        for m in MODALITIES
    ]
    keys = fusion.norm(torch.cat(tokens, 1))
    present = only(("audio", "video"))
    padding = torch.cat([~present[:, [c]].expand(-1, TOKENS[m]) for c, m in enumerate(MODALITIES)], 1)
    mixed, mass = reference(fusion.query.expand(BATCH, 1, -1), keys, keys, key_padding_mask=padding)
    x = fusion.query + mixed[:, 0]
    fused = fusion(parts, logits, present)
    torch.testing.assert_close(fused.logits_BK, fusion.head(x + fusion.feed_forward(x)), rtol=1e-5, atol=1e-5)
    expected = torch.stack([part.sum(-1)[:, 0] for part in mass.split(list(TOKENS.values()), -1)], 1)
    torch.testing.assert_close(fused.weights_BM, expected, rtol=1e-5, atol=1e-6)


def test_corrected_weights_forgive_the_number_of_tokens() -> None:
    fusion = attention()
    with torch.no_grad():
        fusion.q.weight.zero_()
        fusion.q.bias.zero_()  # every token gets the same attention
    parts, logits = encoded()
    fused = fusion(parts, logits, everyone())
    raw = torch.tensor([TOKENS[m] / 12 for m in MODALITIES]).expand(BATCH, 3)
    torch.testing.assert_close(fused.weights_BM, raw)
    torch.testing.assert_close(fused.corrected_BM, torch.full((BATCH, 3), 1 / 3))


def test_the_time_of_a_token_matters() -> None:
    fusion = attention()
    parts, logits = encoded()
    before = fusion(parts, logits, everyone()).logits_BK
    shifted = parts | {"audio": parts["audio"]._replace(tokens_BND=parts["audio"].tokens_BND.roll(1, 1))}
    assert not torch.allclose(before, fusion(shifted, logits, everyone()).logits_BK, atol=1e-4)
    later = attention(times=TIMES | {"video": TIMES["video"] + 0.1})
    later.load_state_dict(fusion.state_dict())
    assert not torch.allclose(before, later(parts, logits, everyone()).logits_BK, atol=1e-4)


def test_what_is_attended_to_depends_on_the_sample() -> None:
    parts, logits = encoded(16)
    weights = attention()(parts, logits, everyone(16)).weights_BM
    assert (weights.std(0) > 1e-3).all()


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    fusion = attention()
    parts, logits = encoded()
    together = fusion(parts, logits, everyone()).logits_BK
    for row in range(BATCH):
        one = {m: Encoded(*(x[row : row + 1] for x in part)) for m, part in parts.items()}
        alone = fusion(one, {m: x[row : row + 1] for m, x in logits.items()}, everyone(1)).logits_BK
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-6)


def test_fusion_on_cached_embeddings_is_the_fusion_inside_a_classifier() -> None:
    fusion = attention()
    parts, logits = encoded()
    inputs = {f"{m}.tokens": e.tokens_BND for m, e in parts.items()} | {f"{m}.logits": x for m, x in logits.items()}
    inputs |= {f"{m}.mask": e.mask_BN for m, e in parts.items()}
    present = only(("audio", "eeg"))
    alone = FusionAlone(fusion, list(reversed(MODALITIES)))(inputs, present)
    inside = fuse(fusion, parts, logits, present)
    assert torch.equal(alone.logits_BK, inside.logits_BK)
    assert torch.equal(alone.weights_BM, inside.weights_BM)


def test_with_one_modality_its_own_head_decides() -> None:
    parts, logits = encoded(names=("eeg",))
    out = fuse(None, parts, logits, torch.ones(BATCH, 1, dtype=torch.bool))
    assert torch.equal(out.logits_BK, logits["eeg"])
    assert (out.weights_BM == 1).all()

"""What is missing counts for nothing, bit for bit; what is present is weighed, and the weights sum to 1."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from eav_ray.config import MODALITIES, Experiment, override
from eav_ray.config.model_sections import KIND_PLACES
from eav_ray.errors import ConfigError, DataError
from eav_ray.models.classifier import FusionClassifier, fuse
from eav_ray.models.encoders.base import EncoderOutput
from eav_ray.models.fusion.base import Fusion
from eav_ray.models.fusion.bottleneck import BottleneckFusion
from eav_ray.models.fusion.factory import build_fusion
from eav_ray.models.fusion.gated import GatedFusion
from eav_ray.models.fusion.mean import MeanFusion
from eav_ray.models.fusion.mean_probability import MeanProbabilityFusion
from eav_ray.models.fusion.product import ProductFusion
from eav_ray.models.fusion.shared_attention import SharedAttentionFusion
from eav_ray.models.fusion.single_token import SingleTokenFusion
from eav_ray.training.metrics import average_values, combine_by_rules

WIDTHS = {"audio": 6, "eeg": 8, "video": 10}
TOKENS = {"audio": 5, "eeg": 3, "video": 4}
TIMES = {m: (torch.arange(n) + 0.5) * 2 / n for m, n in TOKENS.items()}
SUBSETS = [s for n in (1, 2, 3) for s in combinations(MODALITIES, n)]
N_OUTPUTS, BATCH = 5, 4
FUSION_KINDS = [k for k, s in KIND_PLACES["fusion"].list_kinds().items() if s.__module__.startswith("eav_ray.")]

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.fixture
def seeded() -> None:
    torch.manual_seed(0)


def attention(
    names: tuple[str, ...] = MODALITIES,
    times: dict[str, Tensor] = TIMES,
    dropout: float = 0.0,
    late_fusion_residual: bool = True,
    n_query_steps: int = 2,
    heads: int = 4,
) -> SharedAttentionFusion:
    torch.manual_seed(1)
    widths = {m: WIDTHS[m] for m in names}
    fusion = SharedAttentionFusion(
        widths,
        times,
        window_s=2,
        n_outputs=N_OUTPUTS,
        width=16,
        heads=heads,
        dropout=dropout,
        late_fusion_residual=late_fusion_residual,
        n_query_steps=n_query_steps,
    )
    nn.init.normal_(fusion.query)  # away from their small starts, so that attention differs between tokens
    for linear in (module for module in fusion.next_queries.modules() if isinstance(module, nn.Linear)):
        nn.init.normal_(linear.weight)
    return fusion.eval()


def plain_attention(names: tuple[str, ...] = MODALITIES) -> SharedAttentionFusion:
    return attention(names, late_fusion_residual=False, n_query_steps=1)


def pooled_attention(names: tuple[str, ...] = MODALITIES) -> SharedAttentionFusion:
    torch.manual_seed(1)
    widths = {m: WIDTHS[m] for m in names}
    return SharedAttentionFusion(
        widths, TIMES, window_s=2, n_outputs=N_OUTPUTS, width=16, heads=4, dropout=0.0, pooled=True
    ).eval()


def bottleneck(names: tuple[str, ...] = MODALITIES, times: dict[str, Tensor] = TIMES) -> BottleneckFusion:
    torch.manual_seed(1)
    sizes: dict[str, Any] = dict(n_outputs=N_OUTPUTS, width=16, heads=4, depth=2, bottlenecks=3, dropout=0.0)
    return BottleneckFusion({m: WIDTHS[m] for m in names}, times, window_s=2, **sizes).eval()


def gated(names: tuple[str, ...] = MODALITIES) -> GatedFusion:
    torch.manual_seed(1)
    return GatedFusion({m: WIDTHS[m] for m in names}, n_outputs=N_OUTPUTS, width=16, dropout=0.0).eval()


def single_token(names: tuple[str, ...] = MODALITIES) -> SingleTokenFusion:
    torch.manual_seed(1)
    return SingleTokenFusion({m: WIDTHS[m] for m in names}, n_outputs=N_OUTPUTS, heads=2, dropout=0.0).eval()


def product(names: tuple[str, ...] = MODALITIES) -> ProductFusion:
    return ProductFusion()


def mean_probability(names: tuple[str, ...] = MODALITIES) -> MeanProbabilityFusion:
    return MeanProbabilityFusion()


def mean(names: tuple[str, ...] = MODALITIES) -> MeanFusion:
    return MeanFusion()


def attention_of_numbers(names: tuple[str, ...] = MODALITIES) -> SharedAttentionFusion:
    fusion = attention(names)
    fusion.predicts_numbers = True
    return fusion


FUSIONS = [attention, plain_attention, pooled_attention, bottleneck, gated, single_token, product, mean_probability]
FUSIONS += [mean, attention_of_numbers]
RULES = {"mean_probability": MeanProbabilityFusion(), "product": ProductFusion()}
Make = Callable[..., Fusion]


def choose_kind(kind: str) -> dict[str, Any]:
    """Changes of an experiment to a kind of fusion, and to what it fuses."""
    return {"fusion.kind": kind} | ({"data.targets.columns": ["valence"]} if kind == "mean" else {})


def encoded(n: int = BATCH, names: tuple[str, ...] = MODALITIES) -> tuple[dict[str, EncoderOutput], dict[str, Tensor]]:
    tokens = {m: torch.randn(n, TOKENS[m], WIDTHS[m]) for m in names}
    real = {m: torch.ones(n, TOKENS[m], dtype=torch.bool) for m in names}
    return {m: EncoderOutput(t, real[m], t.mean(1)) for m, t in tokens.items()}, {
        m: torch.randn(n, N_OUTPUTS) for m in names
    }


def everyone(n: int = BATCH) -> Tensor:
    return torch.ones(n, 3, dtype=torch.bool)


def only(subset: tuple[str, ...], n: int = BATCH) -> Tensor:
    return torch.tensor([m in subset for m in MODALITIES]).expand(n, 3)


@pytest.mark.parametrize("kind", ["shared_attention", "bottleneck"])
@pytest.mark.parametrize("positions", [True, False])
def test_the_order_of_tokens_matters_by_their_time_marks_alone(kind: str, positions: bool) -> None:
    changes = {"fusion.kind": kind, "fusion.positions": positions, "fusion.width": 16, "fusion.heads": 4}
    e = override(Experiment(), changes)
    torch.manual_seed(1)
    fusion = build_fusion(e, WIDTHS, TIMES, N_OUTPUTS).double().eval()
    for parameter in fusion.parameters():  # away from their small starts
        nn.init.normal_(parameter, std=0.3)
    parts, logits = encoded()
    parts = {m: EncoderOutput(e.tokens_BND.double(), e.mask_BN, e.pooled_BD.double()) for m, e in parts.items()}
    logits = {m: x.double() for m, x in logits.items()}
    turned = {m: EncoderOutput(e.tokens_BND.flip(1), e.mask_BN, e.pooled_BD) for m, e in parts.items()}
    one, other = (fusion(some, logits, everyone()) for some in (parts, turned))
    for a, b in zip(one, other, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-9) != positions


@pytest.mark.parametrize("kind", ["shared_attention", "bottleneck"])
def test_without_time_marks_all_else_starts_from_the_same_weights(kind: str) -> None:
    made = []
    for positions in (True, False):
        torch.manual_seed(1)
        e = override(Experiment(), {"fusion.kind": kind, "fusion.positions": positions})
        made.append(build_fusion(e, WIDTHS, TIMES, N_OUTPUTS).state_dict())
    marked, plain = made
    assert marked.keys() - plain.keys() == {"token_projector.time.weight"} and not plain.keys() - marked.keys()
    assert all(torch.equal(plain[name], marked[name]) for name in plain)


def test_the_contract_covers_every_fusion() -> None:
    experiments = [override(Experiment(), choose_kind(kind)) for kind in FUSION_KINDS]
    assert {type(make()) for make in FUSIONS} == {type(build_fusion(e, WIDTHS, TIMES, N_OUTPUTS)) for e in experiments}


@pytest.mark.parametrize("kind", ["shared_attention", "mean"])
def test_a_fusion_of_numbers_starts_from_the_mean_of_what_the_modalities_predict(kind: str) -> None:
    e = override(Experiment(), {"fusion.kind": kind, "data.targets.columns": list("abcde")})
    fusion, (parts, outputs) = build_fusion(e, WIDTHS, TIMES, N_OUTPUTS).eval(), encoded()
    assert fusion.predicts_numbers
    for subset in SUBSETS:
        present = only(subset)
        broken = {m: x if m in subset else x * torch.nan for m, x in outputs.items()}
        found = fusion(parts, broken, present).logits_BK.detach().numpy()
        stacked = torch.stack([broken[m] for m in sorted(MODALITIES)], 1).numpy()
        expected = average_values(stacked, present.numpy())
        np.testing.assert_allclose(found, expected, atol=1e-6 if kind == "mean" else 0.05)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fusion.kind": "product", "data.targets.columns": ["valence"]}, "fuses classes.*use mean"),
        ({"fusion.kind": "mean"}, "fuses numbers.*use product"),
    ],
)
def test_a_rule_of_the_other_kind_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        override(Experiment(), changes)


@pytest.mark.parametrize("make", FUSIONS)
def test_every_parameter_gets_a_gradient(make: Make) -> None:
    fusion = make()
    parts, logits = encoded()
    for part in logits.values():
        part.requires_grad_()
    nn.functional.cross_entropy(fusion(parts, logits, everyone()).logits_BK, torch.arange(BATCH)).backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    if fusion.n_keys and fusion.n_keys > 1:
        assert all(g.abs().sum() > 0 for g in fusion.list_query_key_gradients())


@pytest.mark.parametrize("make", FUSIONS)
def test_evaluation_draws_nothing_and_state_survives_safetensors(make: Make) -> None:
    fusion, (parts, logits) = make(), encoded()
    other = make()
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.add_(0.1)
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(fusion.state_dict())))
    for one, another in zip(fusion(parts, logits, everyone()), other(parts, logits, everyone()), strict=True):
        assert torch.equal(one, another)


@pytest.mark.parametrize("make", [attention, bottleneck])
def test_how_long_the_padding_is_changes_next_to_nothing(make: Callable[..., Fusion]) -> None:
    """fp32, logits and weights after one forward pass."""
    parts, logits = encoded()
    before = make()(parts, logits, everyone())
    times = {m: torch.cat([t, torch.full((40,), 2.0)]) for m, t in TIMES.items()}
    longer = {
        m: EncoderOutput(
            nn.functional.pad(e.tokens_BND, (0, 0, 0, 40), value=1e9),
            nn.functional.pad(e.mask_BN, (0, 40)),
            e.pooled_BD,
        )
        for m, e in parts.items()
    }
    for one, other in zip(before, make(times=times)(longer, logits, everyone()), strict=True):
        assert (one - other).abs().max() <= 1e-5


@pytest.mark.parametrize("content", [float("nan"), float("inf"), 1e9])
@pytest.mark.parametrize("make", FUSIONS)
def test_the_content_of_padding_changes_no_bit(make: Make, content: float) -> None:
    fusion, present = make(), everyone()
    present[0, 0] = present[1, 2] = present[2, 1] = False
    parts, logits = encoded()
    parts["audio"].mask_BN[3, 3:] = False
    before = fusion(parts, logits, present)
    for column, m in enumerate(MODALITIES):
        hidden = ~(parts[m].mask_BN & present[:, column, None])
        parts[m].tokens_BND[hidden] = content
        parts[m].pooled_BD[~present[:, column]] = content
        logits[m][~present[:, column]] = content
    after = fusion(parts, logits, present)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("make", FUSIONS)
def test_gradients_do_not_see_the_content_of_padding(make: Make) -> None:
    fusion = make()
    parts, logits = encoded()
    leaves = [*(x for e in parts.values() for x in (e.tokens_BND, e.pooled_BD)), *logits.values()]
    for leaf in leaves:
        leaf[0] = float("nan")
        leaf.requires_grad_()
    present = everyone()
    for leaf in (parts["eeg"].tokens_BND, parts["eeg"].pooled_BD, logits["eeg"]):
        leaf.data[0] = 0.5
    present[0] = only(("eeg",), 1)[0]
    fusion(parts, logits, present).logits_BK.square().sum().backward()
    grads = [p.grad for p in [*fusion.parameters(), *leaves] if p.grad is not None]
    assert grads and all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("make", FUSIONS)
def test_the_order_in_which_modalities_are_named_changes_nothing(make: Make) -> None:
    fusion = make()
    parts, logits = encoded()
    before = fusion(parts, logits, everyone())
    other = dict(reversed(parts.items())), dict(reversed(logits.items()))
    turned = make(tuple(reversed(MODALITIES)))
    turned.load_state_dict(fusion.state_dict())
    fusion = turned
    for one, another in zip(before, fusion(*other, everyone()), strict=True):
        assert torch.equal(one, another)


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
@pytest.mark.parametrize("make", FUSIONS)
def test_each_subset_trains_and_what_is_missing_weighs_exactly_nothing(make: Make, subset: tuple[str, ...]) -> None:
    fusion = make().train()
    parts, logits = encoded()
    for part in logits.values():
        part.requires_grad_()
    fused = fusion(parts, logits, only(subset))
    assert fused.logits_BK.isfinite().all()
    for weights in (fused.weights_BM, fused.corrected_BM):
        assert ((weights == 0) == ~only(subset)).all() and (weights <= 1).all()
        torch.testing.assert_close(weights.sum(1), torch.ones(BATCH))
    nn.functional.cross_entropy(fused.logits_BK, torch.arange(BATCH)).backward()
    grads = [p.grad for p in fusion.parameters()] or [logits[m].grad for m in subset]
    assert all(g is not None and g.isfinite().all() for g in grads)
    assert any(g is not None and g.abs().sum() > 0 for g in grads)


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
@pytest.mark.parametrize("make", [attention, pooled_attention, bottleneck])
def test_a_missing_modality_is_as_if_it_had_never_been_there(make: Make, subset: tuple[str, ...]) -> None:
    whole, part = make(), make(subset)
    part.load_state_dict({k: v for k, v in whole.state_dict().items() if k in part.state_dict()})
    parts, logits = encoded()
    masked = whole(parts, logits, only(subset)).logits_BK
    alone = part({m: parts[m] for m in subset}, {m: logits[m] for m in subset}, everyone()[:, : len(subset)]).logits_BK
    torch.testing.assert_close(masked, alone, rtol=1e-5, atol=1e-6)


def test_a_sample_with_nothing_is_an_error_and_not_a_number() -> None:
    parts, logits = encoded()
    present = everyone()
    present[2] = False
    for fusion in (*(make() for make in FUSIONS), None):
        with pytest.raises(DataError, match="none of the modalities"):
            fuse(fusion, parts, logits, present)


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_the_rules_are_means_of_the_probabilities_that_are_present(subset: tuple[str, ...]) -> None:
    """The arithmetic mean, and the normalised geometric one, which is the softmax of the mean of the logits."""
    parts, logits = encoded()
    present = only(subset)
    found = {m: fusion(parts, logits, present).logits_BK.softmax(-1) for m, fusion in RULES.items()}
    torch.testing.assert_close(found["mean_probability"], torch.stack([logits[m].softmax(-1) for m in subset]).mean(0))
    torch.testing.assert_close(found["product"], torch.stack([logits[m] for m in subset]).mean(0).softmax(-1))
    multiplied = torch.stack([logits[m].softmax(-1) for m in subset]).prod(0)
    assert torch.equal(found["product"].argmax(-1), multiplied.argmax(-1))


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_a_rule_as_a_fusion_is_the_source_of_its_name(subset: tuple[str, ...]) -> None:
    parts, logits = encoded()
    present = only(subset)
    stacked = torch.stack([logits[m] for m in MODALITIES], 1).numpy()
    sources = combine_by_rules(stacked, present.numpy())
    for rule, fusion in RULES.items():
        torch.testing.assert_close(fusion(parts, logits, present).logits_BK, torch.from_numpy(sources[rule]))


def test_a_mean_of_probabilities_is_a_number_where_a_product_would_be_none() -> None:
    """Half precision, and logits so far apart that a probability is 0 in float32."""
    parts, _ = encoded()
    logits = {m: torch.full((BATCH, N_OUTPUTS), -300.0).half() for m in MODALITIES}
    for k, m in enumerate(MODALITIES):
        logits[m][:, k] = 300
    found = MeanProbabilityFusion()(parts, logits, everyone()).logits_BK
    assert found.isfinite().all()
    torch.testing.assert_close(found.softmax(-1)[:, : len(MODALITIES)], torch.full((BATCH, len(MODALITIES)), 1 / 3))


def test_attention_reads_its_tokens_as_torchs_attention_does() -> None:
    fusion = plain_attention()
    parts, logits = encoded()
    reference = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([fusion.q.weight, fusion.kv.weight]))
        reference.in_proj_bias.copy_(torch.cat([fusion.q.bias, fusion.kv.bias]))
        reference.out_proj.load_state_dict(fusion.proj.state_dict())
    tokens = [
        fusion.token_projector.inputs[m](parts[m].tokens_BND)
        + fusion.token_projector.modality[m]
        + fusion.token_projector.time(fusion.token_projector.get_buffer(f"time_encoding_{m}"))
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
        fusion.kv.weight[: fusion.width].zero_()  # every token gets the same attention
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


@pytest.mark.parametrize("make", [attention, pooled_attention, bottleneck, gated])
def test_the_weights_depend_on_the_sample(make: Make) -> None:
    parts, logits = encoded(16)
    weights = make()(parts, logits, everyone(16)).weights_BM
    assert (weights.std(0) > 1e-3).all()


@pytest.mark.parametrize(("n_query_steps", "reported"), [(1, False), (2, True), (3, True)])
def test_from_the_second_query_on_one_modality_tells_how_another_weighs(n_query_steps: int, reported: bool) -> None:
    """What EEG weighs beside video by one head, after the audio has changed; a first read cannot know."""
    fusion, (parts, logits) = attention(n_query_steps=n_query_steps, heads=1), encoded()
    other = parts | {"audio": parts["audio"]._replace(tokens_BND=torch.randn_like(parts["audio"].tokens_BND))}
    one, another = (fusion(p, logits, everyone()).weights_BM for p in (parts, other))
    ratio = (another[:, 1] / another[:, 2]) / (one[:, 1] / one[:, 2])
    assert ((ratio - 1).abs() > 1e-2).any() == reported
    assert reported or torch.allclose(ratio, torch.ones(BATCH), atol=1e-5)


@pytest.mark.parametrize("make", FUSIONS)
def test_samples_of_a_batch_do_not_see_each_other(make: Make) -> None:
    fusion = make()
    parts, logits = encoded()
    combined = fusion(parts, logits, everyone()).logits_BK
    for row in range(BATCH):
        one = {m: EncoderOutput(*(x[row : row + 1] for x in part)) for m, part in parts.items()}
        alone = fusion(one, {m: x[row : row + 1] for m, x in logits.items()}, everyone(1)).logits_BK
        torch.testing.assert_close(combined[row : row + 1], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", FUSIONS)
def test_fusion_on_cached_embeddings_is_the_fusion_inside_a_classifier(make: Make) -> None:
    fusion = make()
    parts, logits = encoded()
    inputs = {f"{m}.tokens": e.tokens_BND for m, e in parts.items()} | {f"{m}.logits": x for m, x in logits.items()}
    inputs |= {f"{m}.mask": e.mask_BN for m, e in parts.items()} | {
        f"{m}.pooled": e.pooled_BD for m, e in parts.items()
    }
    present = only(("audio", "eeg"))
    alone = FusionClassifier(fusion, list(reversed(MODALITIES)))(inputs, present)
    inside = fuse(fusion, parts, logits, present)
    assert torch.equal(alone.logits_BK, inside.logits_BK)
    assert torch.equal(alone.weights_BM, inside.weights_BM)


def test_with_one_modality_its_own_head_decides() -> None:
    parts, logits = encoded(names=("eeg",))
    out = fuse(None, parts, logits, torch.ones(BATCH, 1, dtype=torch.bool))
    assert torch.equal(out.logits_BK, logits["eeg"])
    assert (out.weights_BM == 1).all()


PUBLISHED = {"video": 768, "audio": 768, "eeg": 60}


def published() -> SingleTokenFusion:
    return SingleTokenFusion(PUBLISHED, n_outputs=5, heads=4, dropout=0.5).eval()


def pooled_only(n: int) -> dict[str, EncoderOutput]:
    real = torch.ones(n, 1, dtype=torch.bool)
    return {m: EncoderOutput(torch.randn(n, 1, w), real, torch.randn(n, w)) for m, w in PUBLISHED.items()}


def test_the_references_fusion_has_its_size() -> None:
    assert sum(p.numel() for p in published().parameters()) == 11_145_525


def test_the_references_fusion_attends_to_one_token_with_weight_one_and_is_a_linear_map() -> None:
    fusion, parts = published(), pooled_only(6)
    with torch.no_grad():
        nn.init.normal_(fusion.attention.in_proj_bias)
    x = fusion.concatenate_pooled(parts, everyone(6))
    assert torch.equal(x[:, 0], torch.cat([parts[m].pooled_BD for m in ("video", "audio", "eeg")], 1))
    _, attention_weight = fusion.attention(x, x, x, need_weights=True, average_attn_weights=False)
    assert attention_weight.shape == (6, 4, 1, 1) and (attention_weight == 1).all()
    d = fusion.width
    value, bias = fusion.attention.in_proj_weight[2 * d :], fusion.attention.in_proj_bias[2 * d :]
    linear = fusion.attention.out_proj(x[:, 0] @ value.T + bias)
    expected = fusion.head(fusion.reduce(linear))
    torch.testing.assert_close(fusion(parts, {}, everyone(6)).logits_BK, expected, rtol=1e-5, atol=1e-5)


def test_queries_and_keys_of_the_references_fusion_get_no_gradient() -> None:
    fusion = published()
    nn.functional.cross_entropy(fusion(pooled_only(6), {}, everyone(6)).logits_BK, torch.arange(6) % 5).backward()
    whole = fusion.attention.in_proj_weight.grad
    assert whole is not None and whole[2 * fusion.width :].abs().max() > 0
    (query_key,) = fusion.list_query_key_gradients()
    # 5,097,624 of its parameters, with their biases.
    assert query_key.numel() + 2 * fusion.width == 5_097_624
    assert query_key.abs().max() <= 1e-6 * whole.abs().max()


def test_heads_that_do_not_divide_the_concatenation_are_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"fusion\.heads is 5.*1792.*use one of \[1, 2, 4, "):
        override(Experiment(), {"fusion.kind": "single_token", "fusion.heads": 5})
    e = override(Experiment(), {"fusion.kind": "single_token", "fusion.heads": 4, "model.eeg.kind": "eav_transformer"})
    assert isinstance(build_fusion(e, PUBLISHED, {}, 5), SingleTokenFusion)


@pytest.mark.parametrize("kind", FUSION_KINDS)
@pytest.mark.parametrize("input_kind", ["tokens", "pooled"])
def test_every_kind_of_the_experiment_is_built(kind: str, input_kind: str) -> None:
    e = override(Experiment(), {"fusion.input": input_kind, "fusion.width": 16, "fusion.heads": 4})
    e = override(e, choose_kind(kind))
    fusion = build_fusion(e, WIDTHS, TIMES, N_OUTPUTS)
    parts, logits = encoded()
    assert fusion(parts, logits, everyone()).logits_BK.shape == (BATCH, N_OUTPUTS)
    if kind == "shared_attention":
        assert fusion.n_keys == (12 if input_kind == "tokens" else 3)


def test_a_fresh_attention_is_late_fusion_whatever_the_numbers_of_tokens() -> None:
    torch.manual_seed(1)
    sizes: dict[str, Any] = dict(n_outputs=N_OUTPUTS, width=16, heads=4, dropout=0.0, n_query_steps=2)
    fusion = SharedAttentionFusion(WIDTHS, TIMES, window_s=2, **sizes).eval()
    parts, logits = encoded()
    with torch.no_grad():
        fusion.q.bias.zero_()  # as random as its weights, it prefers tokens a little
    fused = fusion(parts, logits, only(("audio", "video")))
    expected = logits["audio"].log_softmax(-1) + logits["video"].log_softmax(-1)
    torch.testing.assert_close(fused.logits_BK, expected, atol=0.1, rtol=0)
    assert len(set(TOKENS.values())) == 3


def test_the_late_fusion_residual_sends_no_gradient_into_the_modalities_own_logits() -> None:
    parts, logits = encoded()
    for part in logits.values():
        part.requires_grad_()
    attention()(parts, logits, everyone()).logits_BK.sum().backward()
    assert all(part.grad is None for part in logits.values())

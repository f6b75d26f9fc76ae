"""The encoder of signals learns what lies in their course over time, and masks what was not recorded."""

from typing import Any

import torch
from torch import Tensor, nn

from eav_ray.models.encoders.signal import Signal


def make_encoder(**sizes: Any) -> Signal:
    torch.manual_seed(0)
    return Signal(
        1, 250, **{"window_s": 5, "width": 16, "depth": 3, "kernel": 9, "segments": 5, "dropout": 0.0} | sizes
    )


def make_pulses(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Windows of 5 s at 50 samples a second with one beat or two a second, at any phase and size; their means agree."""
    rng = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 2
    t = torch.arange(250)[None] / 50 + torch.rand(n, 1, generator=rng)
    x = (2 * torch.pi * (1 + label[:, None]) * t).sin() * (0.5 + torch.rand(n, 1, generator=rng))
    return x[..., None] + 0.2 * torch.randn(n, 250, 1, generator=rng), label


def test_a_rate_that_no_mean_shows_is_learned() -> None:
    encoder, (x, label) = make_encoder(), make_pulses(64, 0)
    encoder.fit_statistics([(x, None)])
    head = nn.Linear(16, 2)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(encoder(x, torch.ones(64, dtype=torch.bool)).pooled_BD), label).backward()
        optimizer.step()
    unseen, truth = make_pulses(100, 1)
    predicted = head(encoder.eval()(unseen, torch.ones(100, dtype=torch.bool)).pooled_BD).argmax(1)
    assert (predicted == truth).float().mean() >= 0.95


def test_a_segment_without_a_sample_is_masked_and_no_number_spreads_from_it() -> None:
    encoder, (x, _) = make_encoder().eval(), make_pulses(4, 0)
    x[0, 50:150] = torch.nan  # the second and third of five seconds
    x[1] = torch.nan
    out = encoder(x, torch.tensor([True, True, True, False]))
    assert out.mask_BN.tolist() == [[True, False, False, True, True], [False] * 5, [True] * 5, [False] * 5]
    assert out.tokens_BND.isfinite().all() and out.pooled_BD.isfinite().all()
    assert encoder.times_s.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]

"""Training is a function of (seed, epoch, step): whatever the world size, and wherever it was interrupted."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eav_ray.config import OptimConfig
from eav_ray.models.classifier import ClassifierOutput
from eav_ray.training.dataloader import Batch, BatchLoader, WindowLabels, make_inference_batches
from eav_ray.training.engines.base import build_parameter_groups
from eav_ray.training.loop import Metrics, fit, make_lr_schedule
from eav_ray.training.losses import compute_loss_sum, mixup
from eav_ray.training.run_spec import Position
from eav_ray.training.statistics import compute_class_weights

N = 53  # a ragged last batch for every batch size below
NAMES = ["audio", "eeg", "video"]


class Rows:
    """A source whose only input is the row number."""

    names = NAMES

    def __init__(self) -> None:
        present = np.random.default_rng(0).random((N, 3)) < 0.7
        present[~present.any(1), 1] = True
        self._present = present

    def get(self, rows: np.ndarray) -> dict[str, Tensor]:
        return {"row": torch.from_numpy(np.asarray(rows))}

    def get_presence(self, rows: np.ndarray) -> np.ndarray:
        return self._present[rows]


SOURCE = Rows()
LABELS = WindowLabels(np.arange(N) % 5, np.arange(N, dtype=np.int64) * 7919)
ROWS = np.arange(N)[::2]  # 27 training rows


def loader(*, batch: int = 6, rank: int = 0, world: int = 1, seed: int = 0, dropout: float = 0.0) -> BatchLoader:
    return BatchLoader(SOURCE, LABELS, ROWS, seed, batch, dropout, rank, world)


class Recorder:
    """An engine that only writes down what it is given."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world_size = rank, world
        self.batches: list[Batch] = []
        self.rates: list[float] = []

    def train_step(self, batch: Batch, lr: float) -> float:
        self.batches.append(batch)
        self.rates.append(lr)
        return float(batch.weight_B.sum())

    def predict(self, batch: Batch) -> ClassifierOutput:
        raise NotImplementedError

    def gather_weights(self) -> dict[str, Tensor]:
        return {}

    def optimizer_state(self) -> dict[str, Tensor]:
        return {}

    def sync_buffers(self) -> None:
        pass

    def close(self) -> None:
        pass

    @property
    def seen(self) -> list[list[int]]:
        return [real(b) for b in self.batches]


def real(batch: Batch) -> list[int]:
    return batch.inputs["row"][batch.weight_B > 0].tolist()


def run(engine: Recorder, of: BatchLoader, start: Position, stop: Position) -> list[tuple[Position, Metrics]]:
    reports: list[tuple[Position, Metrics]] = []
    fit(
        engine,
        start=start,
        stop=stop,
        lr=make_lr_schedule(OptimConfig(epochs=3), of.steps_per_epoch),
        batches=of.batches,
        on_epoch_end=lambda position, metrics: reports.append((position, metrics)),
    )
    return reports


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch", [6, 12, 30])
def test_each_window_is_seen_once_an_epoch_by_all_ranks_together(world: int, batch: int) -> None:
    engines = [Recorder(rank, world) for rank in range(world)]
    for engine in engines:
        reports = run(engine, loader(batch=batch, rank=engine.rank, world=world), Position(0, 0), Position(2, 0))
        assert [position for position, _ in reports] == [Position(1, 0), Position(2, 0)]
        assert sum(m["count"] for _, m in reports) == sum(len(s) for s in engine.seen)
    steps = len(engines[0].batches) // 2
    assert {len(e.batches) for e in engines} == {2 * steps}
    for epoch in range(2):
        rows = [r for e in engines for s in e.seen[epoch * steps : (epoch + 1) * steps] for r in s]
        assert Counter(rows) == Counter(ROWS.tolist())


@pytest.mark.parametrize("world", [2, 3])
def test_the_global_batch_of_a_step_is_the_same_for_every_world_size(world: int) -> None:
    alone = list(loader(dropout=0.4).batches(Position(1, 0)))
    ranks = [list(loader(dropout=0.4, rank=r, world=world).batches(Position(1, 0))) for r in range(world)]
    for step, whole in enumerate(alone):
        parts = [r[step] for r in ranks]
        assert sorted(row for p in parts for row in real(p)) == sorted(real(whole))
        assert {p.global_count for p in parts} == {whole.global_count} == {len(real(whole))}
        assert {p.seed for p in parts} == {whole.seed}
        present = dict(zip(real(whole), whole.present_BM.tolist(), strict=True))
        for part in parts:
            assert all(
                present[r] == p for r, p in zip(part.inputs["row"].tolist(), part.present_BM.tolist(), strict=True)
            )


def test_a_rank_without_rows_still_steps() -> None:
    last = [list(loader(batch=13, rank=r, world=3).batches(Position(0, 0)))[-1] for r in range(3)]
    assert [b.global_count for b in last] == [1, 1, 1]
    assert [b.weight_B.tolist() for b in last] == [[1.0], [0.0], [0.0]]
    assert [len(b.inputs["row"]) for b in last] == [1, 1, 1]


@pytest.mark.parametrize("step", [0, 1, 3, 4])
def test_resuming_inside_an_epoch_gives_the_batches_that_were_left(step: int) -> None:
    of = loader(dropout=0.3)
    whole, rest = Recorder(), Recorder()
    run(whole, of, Position(0, 0), Position(3, 0))
    run(rest, of, Position(1, step), Position(3, 0))
    left = whole.batches[of.steps_per_epoch + step :]
    assert whole.rates[of.steps_per_epoch + step :] == rest.rates
    assert len(left) == len(rest.batches)
    for one, other in zip(left, rest.batches, strict=True):
        assert torch.equal(one.inputs["row"], other.inputs["row"])
        assert torch.equal(one.present_BM, other.present_BM)
        assert torch.equal(one.label_B, other.label_B)
        assert one.seed == other.seed


@pytest.mark.parametrize("worlds", [(2, 1, 2), (1, 3, 2)])
def test_a_world_that_changes_inside_an_epoch_sees_each_window_once(worlds: tuple[int, ...]) -> None:
    seen: list[int] = []
    cuts = [0, 2, 4, loader().steps_per_epoch]
    for world, first, end in zip(worlds, cuts, cuts[1:], strict=False):
        for rank in range(world):
            batches = list(loader(rank=rank, world=world).batches(Position(0, first)))[: end - first]
            seen += [row for b in batches for row in real(b)]
    assert Counter(seen) == Counter(ROWS.tolist())


def test_the_order_changes_with_the_epoch_and_the_seed_only() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [row for b in loader(seed=seed).batches(Position(epoch, 0)) for row in real(b)]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_every_step_has_a_seed_of_its_own() -> None:
    seeds = [b.seed for e in range(10) for b in loader().batches(Position(e, 0))]
    assert len(set(seeds)) == len(seeds)


def hidden(seed: int, epoch: int, *, batch: int = 6, dropout: float = 0.5) -> dict[int, list[bool]]:
    batches = list(loader(seed=seed, batch=batch, dropout=dropout).batches(Position(epoch, 0)))
    return {r: p for b in batches for r, p in zip(b.inputs["row"].tolist(), b.present_BM.tolist(), strict=True)}


def test_modality_dropout_is_a_function_of_seed_epoch_and_sample() -> None:
    assert hidden(0, 0) == hidden(0, 0, batch=4)
    assert hidden(0, 0) != hidden(0, 1)
    assert hidden(0, 0) != hidden(1, 0)


@pytest.mark.parametrize("dropout", [0.2, 0.5, 0.99])
def test_modality_dropout_hides_at_its_rate_but_never_all_and_adds_nothing(dropout: float) -> None:
    kept, there = 0, 0
    for epoch in range(40):
        for row, present in hidden(0, epoch, dropout=dropout).items():
            had = SOURCE.get_presence(np.array([row]))[0]
            assert any(present)
            assert not (np.array(present) & ~had).any()
            if had.sum() == 3:
                kept, there = kept + sum(present), there + 3
    # All three are hidden with chance p^3, and then one is kept after all.
    expected = 1 - dropout + dropout**3 / 3
    assert kept / there == pytest.approx(expected, abs=4 * (expected * (1 - expected) / there) ** 0.5)


def test_without_modality_dropout_nothing_is_hidden() -> None:
    assert all(p == SOURCE.get_presence(np.array([r]))[0].tolist() for r, p in hidden(0, 0, dropout=0.0).items())


def test_prediction_takes_every_row_once_and_in_order() -> None:
    parts = list(make_inference_batches(SOURCE, LABELS, ROWS, 10))
    assert np.concatenate([rows for rows, _ in parts]).tolist() == ROWS.tolist()
    for rows, batch in parts:
        assert batch.inputs["row"].tolist() == rows.tolist()
        assert (batch.weight_B == 1).all() and batch.global_count == len(rows)
        assert batch.label_B.tolist() == (rows % 5).tolist()


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (10, 7), (3, 100)])
def test_the_learning_rate_warms_up_to_its_peak_and_ends_near_zero(warmup: float, epochs: int, steps: int) -> None:
    lr = make_lr_schedule(OptimConfig(lr=2.0, epochs=epochs, warmup=warmup), steps)
    rates = [lr(Position(e, s)) for e in range(epochs) for s in range(steps)]
    top = int(np.argmax(rates))
    assert rates[top] == pytest.approx(2.0)
    assert all(0 < r <= 2.0 for r in rates)
    assert (np.diff(rates[: top + 1]) > 0).all()
    assert (np.diff(rates[top + 1 :]) < 0).all()
    assert top + 1 == max(1, round(warmup * epochs * steps))
    if warmup < 1 and epochs * steps > 50:
        assert rates[-1] < 0.01


@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_a_constant_rate_stays_at_its_peak_after_the_warm_up(warmup: float) -> None:
    lr = make_lr_schedule(OptimConfig(lr=2.0, epochs=10, warmup=warmup, schedule="constant"), 10, first_epoch=3)
    rates = [lr(Position(3 + e, s)) for e in range(10) for s in range(10)]
    np.testing.assert_allclose(rates[: round(100 * warmup)], 2 * np.arange(1, round(100 * warmup) + 1) / 20)
    assert set(rates[round(100 * warmup) :]) == {2.0}


def test_the_warm_up_is_a_straight_line_and_the_decay_is_torchs_cosine() -> None:
    optim = OptimConfig(lr=1.0, epochs=10, warmup=0.2)
    lr = make_lr_schedule(optim, 10)
    rates = [lr(Position(e, s)) for e in range(10) for s in range(10)]
    np.testing.assert_allclose(rates[:20], np.arange(1, 21) / 20)
    stepper = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(stepper, 80)
    expected = []
    for _ in range(80):
        expected.append(cosine.get_last_lr()[0])
        stepper.step()
        cosine.step()
    np.testing.assert_allclose(rates[20:], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_loss_and_gradient_are_the_mean_over_the_global_batch_however_it_is_split(world: int, smoothing: float) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(1, 5)

    def shares(of: int) -> list[tuple[Tensor, Batch]]:
        batches = [list(loader(rank=r, world=of).batches(Position(0, 0)))[-1] for r in range(of)]
        return [(compute_loss_sum(linear(b.inputs["row"][:, None] / N), b, smoothing), b) for b in batches]

    rows = real(shares(1)[0][1])
    inputs, labels = torch.tensor(rows)[:, None] / N, torch.tensor(LABELS.label[rows])
    expected = nn.functional.cross_entropy(linear(inputs), labels, label_smoothing=smoothing)
    parts = shares(world)
    # As the engines do it: each rank's sum, times world over count, averaged over ranks.
    mean = torch.stack([total * world / b.global_count for total, b in parts]).mean()
    torch.testing.assert_close(mean, expected)
    for found, wanted in zip(*(torch.autograd.grad(x, linear.parameters()) for x in (mean, expected)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_rows_that_only_fill_up_do_not_count() -> None:
    batch = list(loader(batch=13, world=3, rank=0).batches(Position(0, 0)))[-1]
    logits = torch.randn(1, 5, requires_grad=True)
    compute_loss_sum(logits, replace(batch, weight_B=torch.zeros(1)), 0.0).backward()
    assert logits.grad is not None and not logits.grad.any()


def test_biases_and_norms_do_not_decay() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    decayed, kept = build_parameter_groups(module, OptimConfig(weight_decay=0.1))
    assert [p.shape for p in decayed["params"]] == [(4, 3)] and decayed["weight_decay"] == 0.1
    assert [p.shape for p in kept["params"]] == [(4,)] * 3 and kept["weight_decay"] == 0.0


def test_encoders_may_learn_more_slowly_and_what_is_frozen_is_in_no_group() -> None:
    module = nn.ModuleDict({"encoders": nn.Linear(3, 4), "heads": nn.Linear(4, 2), "other": nn.Linear(1, 1)})
    module["other"].requires_grad_(False)
    groups = build_parameter_groups(module, OptimConfig(weight_decay=0.1, encoder_lr_scale=0.2))
    found = {(g["scale"], g["weight_decay"]): [tuple(p.shape) for p in g["params"]] for g in groups}
    assert found == {(0.2, 0.1): [(4, 3)], (0.2, 0.0): [(4,)], (1.0, 0.1): [(2, 4)], (1.0, 0.0): [(2,)]}


def test_a_schedule_begins_at_its_phase() -> None:
    optim = OptimConfig(lr=1.0, epochs=3, warmup=0.2)
    early, late = make_lr_schedule(optim, 10), make_lr_schedule(optim, 10, first_epoch=4)
    assert [late(Position(e + 4, s)) for e in range(3) for s in range(10)] == [
        early(Position(e, s)) for e in range(3) for s in range(10)
    ]


@pytest.mark.parametrize("world", [1, 2])
def test_class_weights_balance_the_classes_and_keep_the_mean(world: int) -> None:
    labels = LABELS.label[ROWS]
    weight = compute_class_weights(labels, 6)
    counts = np.bincount(labels, minlength=6)
    assert counts[5] == 0 and weight[5] == 0
    np.testing.assert_allclose((weight * counts)[:5], len(labels) / 5, rtol=1e-6)
    total = 0.0
    for rank in range(world):
        of = replace(loader(rank=rank, world=world), class_weight=weight)
        for batch in of.batches(Position(0, 0)):
            assert torch.equal(batch.weight_B > 0, torch.isin(batch.weight_B, torch.from_numpy(weight[:5])))
            total += float(batch.weight_B.sum())
    assert total == pytest.approx(len(ROWS), rel=1e-5)


def mixable(n: int = 8) -> Batch:
    present = torch.ones(n, 2, dtype=torch.bool)
    present[n // 2 :, 1] = False
    draw = torch.Generator().manual_seed(0)
    inputs = {
        "eeg": torch.randn(n, 3, generator=draw),
        "video": torch.randint(0, 256, (n, 2, 2), dtype=torch.uint8, generator=draw),
    }
    return Batch(inputs, present, torch.arange(n), torch.ones(n), n, 7)


def test_mixup_mixes_windows_of_one_kind_and_remembers_their_labels() -> None:
    batch = mixable()
    mixed = mixup(batch, 1.0, 0)
    assert mixed.mixup_targets is not None
    other, _, share = mixed.mixup_targets
    assert sorted(other.tolist()) == list(range(8))
    for row in range(8):
        same = bool((batch.present_BM[row] == batch.present_BM[other[row]]).all())
        assert (share[row] == 1.0) == (not same)
        wanted = share[row] * batch.inputs["eeg"][row] + (1 - share[row]) * batch.inputs["eeg"][other[row]]
        torch.testing.assert_close(mixed.inputs["eeg"][row], wanted)
    assert mixed.inputs["video"].dtype == torch.uint8
    assert ((share > 0) & (share <= 1)).all() and (share < 1).any()
    again = mixup(batch, 1.0, 0)
    assert torch.equal(again.inputs["eeg"], mixed.inputs["eeg"])  # from the step's counter
    assert not torch.equal(mixup(replace(batch, seed=8), 1.0, 0).inputs["eeg"], mixed.inputs["eeg"])


def test_the_loss_of_mixed_windows_is_that_of_soft_labels() -> None:
    mixed = mixup(mixable(), 1.0, 0)
    assert mixed.mixup_targets is not None
    other, _, share = mixed.mixup_targets
    logits = torch.randn(8, 8)
    soft = share[:, None] * torch.eye(8)[mixed.label_B] + (1 - share[:, None]) * torch.eye(8)[other]
    torch.testing.assert_close(
        compute_loss_sum(logits, mixed, 0.0), nn.functional.cross_entropy(logits, soft, reduction="sum")
    )


def test_each_label_of_a_mixed_window_has_the_weight_of_its_own_class() -> None:
    batch = mixable()
    batch.weight_B[:] = torch.arange(1.0, 9.0)
    mixed = mixup(batch, 1.0, 0)
    assert mixed.mixup_targets is not None
    other, weight, share = mixed.mixup_targets
    assert torch.equal(weight, batch.weight_B[other])
    logits = torch.zeros(8, 8)  # each cross-entropy is log 8
    total = (share * batch.weight_B + (1 - share) * batch.weight_B[other]).sum() * np.log(8)
    torch.testing.assert_close(compute_loss_sum(logits, mixed, 0.0), total)


def test_windows_of_weight_nothing_are_not_mixed_in() -> None:
    batch = mixable()
    batch.weight_B[1:4] = 0
    mixed = mixup(batch, 1.0, 0)
    assert mixed.mixup_targets is not None
    other, _, share = mixed.mixup_targets
    assert (share[torch.isin(other, torch.tensor([1, 2, 3]))] == 1).all()

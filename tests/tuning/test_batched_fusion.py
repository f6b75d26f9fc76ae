"""Fusions that are trained together are the fusions that would have been trained alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from eav_ray.config import Experiment, override
from eav_ray.data.shards import index as shards_index
from eav_ray.data.shards import schema, tables
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import Split
from eav_ray.data.synthetic.ideal_observer import CLASSES
from eav_ray.models.classifier import FusionClassifier
from eav_ray.models.fusion.factory import build_fusion
from eav_ray.storage import Store, list_package_versions, sha256
from eav_ray.training.dataloader import BatchLoader, WindowLabels
from eav_ray.training.embeddings import build_embedding_key, commit_embeddings, has_embeddings, write_embedding_part
from eav_ray.training.engines.base import Engine
from eav_ray.training.engines.ddp import TorchEngine
from eav_ray.training.loop import Metrics, fit, make_lr_schedule
from eav_ray.training.prepared_run import WorkerContext, prepare_run
from eav_ray.training.run_spec import SELECTION_METRIC, Position, Run, plan_fusion_run
from eav_ray.training.runner import compute_validation_metrics, fit_phases, predict_validation, train_and_score_split
from eav_ray.training.target_scale import TargetScale
from eav_ray.tuning.batched_fusion import FusionMember, plan_stacks, score_fusions, train_fusions, unbatchable_reason
from eav_ray.tuning.pruning import PruningSchedule
from eav_ray.tuning.search_space import apply_candidate

WIDTHS = {"audio": 6, "eeg": 8, "video": 10}
TOKENS = {"audio": 5, "eeg": 3, "video": 4}
TIMES = {m: (torch.arange(n) + 0.5) * 5 / n for m, n in TOKENS.items()}
OUTPUTS, WINDOWS = 5, 150
BASE: dict[str, Any] = {
    "fusion.width": 16,
    "fusion.heads": 4,
    "fusion.depth": 1,
    "optim.epochs": 3,
    "optim.batch": 32,
    "optim.warmup": 0.2,
}
KINDS: dict[str, dict[str, Any]] = {
    "tokens": {},
    "pooled": {"fusion.input": "pooled"},
    "plain": {"fusion.late_fusion_residual": False, "fusion.modality_weight_loss": 0.0},
    "two query steps, no time encodings": {"fusion.n_query_steps": 2, "fusion.positions": False},
    "gated": {"fusion.kind": "gated"},
    "bottleneck": {"fusion.kind": "bottleneck"},
    "single token": {"fusion.kind": "single_token", "fusion.heads": 2},
    "numbers": {"data.targets.columns": list("abcde")},
    "numbers, gated": {"data.targets.columns": list("abcde"), "fusion.kind": "gated"},
}
# What heads of one stack may have for themselves.
OWN: list[dict[str, Any]] = [
    {"optim.lr": 3e-3, "seed": 0},
    {"optim.lr": 1e-3, "seed": 1, "fusion.dropout": 0.4, "optim.epochs": 1},
    {"optim.lr": 1e-2, "seed": 1, "fusion.dropout": 0.0, "optim.weight_decay": 0.3, "optim.clip": 0.05},
    {"optim.lr": 2e-3, "seed": 0, "fusion.modality_dropout": 0.5, "optim.epochs": 2},
]
# Shared attention has its own number of heads too.
HEADS: list[dict[str, Any]] = [
    {"fusion.heads": heads, "fusion.dropout": 0.3, "seed": heads} for heads in (1, 2, 4, 8, 16)
]


def owns(kind: str) -> list[dict[str, Any]]:
    shared = KINDS[kind].get("fusion.kind", "shared_attention") == "shared_attention"
    return [*OWN, *(HEADS if shared else [])]


class Made:
    """Embeddings of windows, two thirds of which lack a modality or have padding."""

    def __init__(self, dtype: torch.dtype, shift: int = 0, *, numbers: bool = False) -> None:
        g = torch.Generator().manual_seed(7 + shift)
        self.names = sorted(WIDTHS)
        self._inputs: dict[str, Tensor] = {}
        for m, n in TOKENS.items():
            mask = torch.rand(WINDOWS, n, generator=g) < 0.8
            mask[:, 0] = True
            self._inputs |= {
                f"{m}.tokens": torch.randn(WINDOWS, n, WIDTHS[m], generator=g).to(dtype),
                f"{m}.mask": mask,
                f"{m}.pooled": torch.randn(WINDOWS, WIDTHS[m], generator=g).to(dtype),
                f"{m}.logits": torch.randn(WINDOWS, OUTPUTS, generator=g).to(dtype),
            }
        present = np.random.default_rng(3).random((WINDOWS, 3)) < 0.7
        present[~present.any(1), 0] = True
        self._present = present
        label = (
            np.random.default_rng(11).standard_normal((WINDOWS, OUTPUTS)) if numbers else np.arange(WINDOWS) % OUTPUTS
        )
        scale = TargetScale(tuple("abcde"), (0.1,) * OUTPUTS, (1.5,) * OUTPUTS) if numbers else None
        self.labels = WindowLabels(label, np.arange(WINDOWS) * 7919, scale)

    def get(self, rows: np.ndarray) -> dict[str, Tensor]:
        return {name: x[rows] for name, x in self._inputs.items()}

    def get_presence(self, rows: np.ndarray) -> np.ndarray:
        return self._present[rows]


def experiment(*changes: dict[str, Any]) -> Experiment:
    whole: dict[str, Any] = dict(BASE)
    for change in changes:
        whole |= change
    return apply_candidate(Experiment(), whole)


def module(e: Experiment, dtype: torch.dtype) -> FusionClassifier:
    torch.manual_seed(e.seed)
    return FusionClassifier(build_fusion(e, WIDTHS, TIMES, OUTPUTS), sorted(WIDTHS)).to(dtype)


def loader(e: Experiment, made: Made, rows: np.ndarray) -> BatchLoader:
    return BatchLoader(made, made.labels, rows, e.seed, e.optim.batch, e.fusion.modality_dropout, 0, 1)


def train_alone(e: Experiment, made: Made, rows: np.ndarray, dtype: torch.dtype) -> tuple[list[float], TorchEngine]:
    """Summed losses of each step, as a run of its own takes them."""
    engine = TorchEngine(module(e, dtype), e.optim, replace(e.runtime, engine="torch"), torch.device("cpu"), None)
    load, losses = loader(e, made, rows), []
    step = engine.train_step
    engine.train_step = lambda batch, lr: losses.append(step(batch, lr)) or losses[-1]
    fit(
        engine,
        start=Position(0, 0),
        stop=Position(e.optim.epochs, 0),
        lr=make_lr_schedule(e.optim, load.steps_per_epoch),
        batches=load.batches,
        on_epoch_end=lambda position, sums: None,
    )
    return losses, engine


def compare(experiments: list[Experiment], folds: list[np.ndarray], dtype: torch.dtype, within: float) -> None:
    """Losses of all steps, and what each head says of all windows in the end."""
    made = Made(dtype, numbers=experiments[0].data.predicts_numbers)
    heads = [FusionMember(module(e, dtype), e.optim, loader(e, made, rows)) for e in experiments for rows in folds]
    reported: list[list[float]] = []
    stack = train_fusions(heads, torch.device("cpu"), lambda step, losses: reported.append(losses))
    whole = next(
        iter(BatchLoader(made, made.labels, np.arange(WINDOWS), 0, WINDOWS, 0.0, 0, 1).batches(Position(0, 0)))
    )
    said = stack.compute_logits(whole, list(range(len(heads))))
    running = list(range(len(heads)))
    found: dict[int, list[float]] = {n: [] for n in running}
    for step, losses in enumerate(reported):
        steps = heads[0].loader.steps_per_epoch
        running = [n for n in running if heads[n].optim.epochs * steps > step]
        for n, loss in zip(running, losses, strict=True):
            found[n].append(loss)
    for number, (e, rows) in enumerate((e, rows) for e in experiments for rows in folds):
        losses, engine = train_alone(e, made, rows, dtype)
        assert found[number] == pytest.approx(losses, abs=within), number
        assert torch.allclose(said[number], engine.predict(whole).logits_BK, atol=100 * within, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_together_are_heads_alone(kind: str) -> None:
    """Summed losses of a whole run in fp64, within 1e-7: of other rates, seeds, dropouts, lengths and folds.

    The folds differ in size, the last batch of one is shorter than that of the other.
    """
    experiments = [experiment(KINDS[kind], own) for own in owns(kind)]
    compare(experiments, [np.arange(0, 120), np.arange(30, 147)], torch.float64, 1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_in_single_precision_the_first_steps_are_the_same(kind: str) -> None:
    """Summed losses of 50 steps in fp32, each over 32 windows, within 1e-5 a window."""
    long = {"optim.epochs": 13, "optim.lr": 1e-3}  # of 4 steps
    own = [{"seed": 0}, {"seed": 1}, *owns(kind)[len(OWN) :]]
    compare([experiment(KINDS[kind], long, o) for o in own], [np.arange(120)], torch.float32, 32e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_head_becomes_does_not_depend_on_who_is_trained_with_it(kind: str) -> None:
    """Bit for bit in fp32: a search that was killed may share out what is left in another way."""
    made = Made(torch.float32, numbers="numbers" in kind)
    experiments = [experiment(KINDS[kind], own) for own in (*owns(kind), *owns(kind)[::-1])]

    def train(chosen: list[Experiment], shorter: bool = False) -> list[dict[str, Tensor]]:
        folds = (np.arange(0, 120), np.arange(30, 147))[shorter:]
        heads = [
            FusionMember(module(e, torch.float32), e.optim, loader(e, made, rows)) for e in chosen for rows in folds
        ]
        stack = train_fusions(heads, torch.device("cpu"))
        return [stack.copy_weights(row) for row in range(len(heads))]

    whole = train(experiments)
    for part in (slice(0, 1), slice(1, 4), slice(2, 7)):
        rows = range(2 * part.start, 2 * part.stop)
        for row, weights in zip(rows, train(experiments[part]), strict=True):
            assert all(torch.equal(weights[name], whole[row][name]) for name in weights), (part, row)
    for chosen in ([0, 1], [1], [2, 3]):  # of which some end as one
        found = train([experiments[n] for n in chosen], shorter=True)
        for n, weights in zip(chosen, found, strict=True):
            assert all(torch.equal(weights[name], whole[2 * n + 1][name]) for name in weights), (chosen, n)


def test_what_cannot_be_batched_says_why() -> None:
    split = Split("within", ("a/1",), ("a/2",), ())
    reasons = {
        "fusion.kind": "product",
        "optim.mixup": 0.2,
        "runtime.precision": "bf16",
        "runtime.micro_batch": 4,
    }
    for key, value in reasons.items():
        run = Run("fusion", experiment({key: value, "runtime.workers": 1}), split, "data")
        assert key in unbatchable_reason(run)
    assert not unbatchable_reason(Run("fusion", experiment(), split, "data"))


def test_only_what_is_alike_shares_a_stack() -> None:
    split = Split("within", ("a/1",), ("a/2",), ())
    changes: list[dict[str, Any]] = [{"fusion.heads": h} for h in (1, 2, 4, 1, 2, 4)]
    changes += [{"fusion.heads": 1, "optim.lr": 0.01}, {"fusion.heads": 1, "optim.batch": 16}]
    runs = [Run("fusion", experiment(KINDS["bottleneck"], change), split, "data") for change in changes]
    assert sorted(map(sorted, plan_stacks([(run, 4) for run in runs], 64))) == [[0, 3, 6], [1, 4], [2, 5], [7]]
    assert sorted(map(len, plan_stacks([(run, 4) for run in runs], 2))) == [1, 1, 2, 2, 2]
    # Shared attention computes heads of any number up to 16 alike.
    changes += [{"fusion.heads": 32, "fusion.width": 64}, {"fusion.heads": 16, "fusion.width": 64}]
    shared = [Run("fusion", experiment(change), split, "data") for change in changes]
    assert sorted(map(sorted, plan_stacks([(run, 4) for run in shared], 64))) == [[0, 1, 2, 3, 4, 5, 6], [7], [8], [9]]
    assert len(list(plan_stacks([(runs[0], 4), (runs[0], 5)], 64))) == 2


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> WorkerContext:
    """Sixty windows of four people, with sound and EEG of noise: only their embeddings are read here."""
    folder = tmp_path_factory.mktemp("heads")
    shards, of = Store(folder / "shards"), schema.make_schema(TWO.preprocessing, 3, ("audio", "eeg"))
    rows = []
    for n in range(60):
        ids = {"subject": f"p{n % 4}", "recording": f"{n // 8:02d}", "window": n // 4 % 2, "label": n // 8 % 5}
        rows.append(dict.fromkeys(of.names, 0) | ids)
        rows[-1] |= {"task": "speaking", "order": n // 8, "has_audio": n % 7 > 0, "has_eeg": True}
        rows[-1] |= {"audio": np.zeros(80_000, np.float32), "eeg": np.zeros((3, 500), np.float32)}
        rows[-1] |= {"audio_seconds": 5.0, "eeg_seconds": 5.0, "eeg_bad_channels": 0}
    content = tables.encode_parquet(tables.build_window_table(rows, of))
    shards.write("all.parquet", content)
    files = (shards_index.ShardFile("all.parquet", sha256(content), len(rows), ""),)
    index = shards_index.ShardIndex("heads", CLASSES, ("audio", "eeg"), 3, files, list_package_versions())
    shards_index.write_index(shards, index)
    windows = WindowCache(shards, shards_index.read_index(shards), cache=folder / "cache", cache_gb=1)
    return WorkerContext(windows, Store(folder / "results"), torch.device("cpu"))


TWO = experiment(
    {"data.modalities": ["audio", "eeg"], "optim.batch": 8, "runtime.workers": 1, "runtime.engine": "torch"}
)


def embed(run: Run, place: WorkerContext) -> None:
    """Embeddings that tell something of the labels, in place of those of encoders."""
    rng = np.random.default_rng(5)
    ids = place.windows.ids
    for key in run.encoder_keys.values():
        label = ids["label"].to_numpy()
        pooled = np.eye(8)[label] + rng.normal(size=(len(ids), 8))
        arrays = {"tokens": pooled[:, None] + rng.normal(size=(len(ids), 3, 8)), "pooled": pooled}
        arrays |= {"logits": np.eye(5)[label] + rng.normal(size=(len(ids), 5)), "mask": np.ones((len(ids), 3))}
        columns: dict[str, Any] = {c: pa.array(ids[c].tolist()) for c in ("subject", "recording", "window")}
        for name, x in arrays.items():
            x = x.astype(np.uint8 if name == "mask" else np.float32)
            columns[name] = pa.FixedShapeTensorArray.from_numpy_ndarray(x)
        folder = build_embedding_key(key, run.embedded_recordings)
        if not has_embeddings(place.results, folder):
            write_embedding_part(place.results, folder, "a", "0000", pa.table(columns))
            commit_embeddings(place.results, folder, "a", torch.tensor([1.0, 2.5, 4.0]))


def runs_of(kind: str, place: WorkerContext) -> list[Run]:
    """Four fusions on two folds, whose encoders have embedded all windows."""
    ids = sorted(set(place.windows.ids["id"]))
    subjects = [tuple(i for i in ids if i.startswith(f"p{n}/")) for n in range(4)]
    splits = [
        Split("subject_kfold", subjects[0] + subjects[1], subjects[2], ()),
        Split("subject_kfold", subjects[1] + subjects[2] + subjects[3], subjects[0][:3], ()),
    ]
    changes = [KINDS[kind] | {k: v for k, v in own.items() if k != "seed"} for own in OWN]
    runs = [plan_fusion_run(override(TWO, change), split, "data", tuple(ids)) for change in changes for split in splits]
    for run in runs:
        embed(run, place)
    return runs


def scored(runs: list[Run], place: WorkerContext, **options: Any) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for numbers, metrics in score_fusions(runs, place, **options):
        found |= dict(zip(numbers, metrics, strict=True))
    return found


@pytest.mark.parametrize("kind", ["tokens", "pooled", "gated"])
@pytest.mark.parametrize("fusion_batch_size", [64, 3])
def test_folds_are_scored_as_each_would_be_alone(kind: str, fusion_batch_size: int, place: WorkerContext) -> None:
    runs = runs_of(kind, place)
    found = scored(runs, place, fusion_batch_size=fusion_batch_size)
    assert len({str(scores) for scores in found.values()}) > 3
    for number, run in enumerate(runs):
        assert found[number] == pytest.approx(train_and_score_split(run, place))


def by_epoch(run: Run, place: WorkerContext) -> dict[int, float]:
    """The score after each epoch of a fusion that is trained alone."""
    ready, found = prepare_run(run, place, fresh=True), {}

    def at_epoch(engine: Engine, position: Position, sums: Metrics) -> None:
        engine.sync_buffers()
        found[position.epoch] = compute_validation_metrics(predict_validation(ready, engine))[SELECTION_METRIC]

    fit_phases(ready, None, at_epoch)
    return found


@pytest.mark.parametrize("kind", ["tokens", "pooled"])
def test_a_look_sees_what_a_head_alone_scores_then_and_changes_nothing(kind: str, place: WorkerContext) -> None:
    runs, shares = runs_of(kind, place), (0.34, 0.67)
    whole = scored(runs, place)
    for fusion_batch_size in (64, 3):
        looked = scored(runs, place, fusion_batch_size=fusion_batch_size, pruning_schedule=PruningSchedule(shares))
        for number, run in enumerate(runs):
            alone, mine = by_epoch(run, place), looked[number]
            assert {k: v for k, v in mine.items() if not k.startswith("rung_")} == whole[number]
            seen = {k: v for k, v in mine.items() if k.startswith("rung_")}
            # Of three epochs, the first two; of two, the first; of one, none.
            expected = {3: {"rung_0.34": 1, "rung_0.67": 2}, 2: {"rung_0.67": 1}, 1: {}}[run.epochs]
            assert seen == pytest.approx({name: alone[epoch] for name, epoch in expected.items()})


def test_a_head_that_does_not_stay_ends_there_and_leaves_no_trace_in_others(place: WorkerContext) -> None:
    runs, asked = runs_of("pooled", place), []

    def stays(run: int, share: float, score: float) -> bool:
        asked.append((run, share))
        return run != 4 and (run, share) != (1, 0.67)

    whole, cut = (
        scored(runs, place, pruning_schedule=PruningSchedule((0.34, 0.67))),
        scored(runs, place, pruning_schedule=PruningSchedule((0.34, 0.67), stays)),
    )
    for number in whole:
        if number == 4:
            assert cut[4] == pytest.approx(cut[4] | {"epochs_share": 0.34, SELECTION_METRIC: whole[4]["rung_0.34"]})
            assert "rung_0.67" not in cut[4]
        elif number == 1:
            assert (cut[1]["epochs_share"], cut[1][SELECTION_METRIC]) == (0.67, whole[1]["rung_0.67"])
        else:
            assert cut[number] == whole[number]
    assert (4, 0.67) not in asked and len(asked) == len(set(asked))

"""Many fusions trained together on the embedding cache, as one batched computation.

A fusion on cached embeddings is so small that most of its training is the overhead of its operations. Here the weights
of many are stacked, and each operation serves all of them. Every head keeps what is its own: initial weights, data
order, modality dropout and dropout masks, learning rate, weight decay and length. It ends where `run.score_fold` would
have ended, up to rounding.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap  # pyright: ignore[reportPrivateImportUsage]
from torch.optim.adamw import adamw
from torch.overrides import TorchFunctionMode

from eav_ray.config import OptimConfig
from eav_ray.data.split import check_disjoint
from eav_ray.models.build import ClassifierOutput, FusionClassifier
from eav_ray.models.fusion import Fusion, SharedAttentionFusion
from eav_ray.search.study import format_rung_column
from eav_ray.training.engine import cast_output_to_float32, compute_loss_sum, compute_modality_weight_loss
from eav_ray.training.loop import Batch, Metrics, Position, make_lr_schedule
from eav_ray.training.metrics import compute_scores_from_logits
from eav_ray.training.plan import SELECTION_METRIC, Run
from eav_ray.training.run import (
    PreparedRun,
    WorkerContext,
    build_batch_loader,
    build_labels,
    open_source,
    prepare_run,
    select_rows_with_modality,
)
from eav_ray.training.source import BatchLoader, Source, WindowLabels, make_inference_batches

DEFAULT_FUSION_BATCH_SIZE = 64  # heads of a stack; from about 16 on more gain little, and take memory
VALIDATION_BATCH_SIZE = 64  # windows, however many heads: another number could round otherwise
MAX_STACK_PARAMETERS = 50_000_000  # of a stack; they are there four times, with gradients and moments
# Rows of every shared attention of a stack with as many heads or fewer, so that heads of all counts are one structure,
# and what a head becomes does not depend on the counts of the others.
PADDED_ATTENTION_HEADS = 16
BETAS, EPS = (0.9, 0.999), 1e-8  # of torch.optim.AdamW, which trains a head alone


def unbatchable_reason(run: Run) -> str:
    """What keeps a fusion run out of a stack, as a phrase; empty where nothing does."""
    e = run.experiment
    if e.fusion.kind == "late_mean":
        return "fusion.kind=late_mean has nothing to train"
    if e.optim.mixup:
        return "optim.mixup draws other windows for each head"
    if e.runtime.precision != "fp32":
        return f"runtime.precision={e.runtime.precision}"
    if 0 < e.runtime.micro_batch < e.optim.batch:
        return f"runtime.micro_batch={e.runtime.micro_batch} splits its batches"
    return ""


@dataclass(frozen=True)
class PruningSchedule:
    """When heads are scored on the way, and which of them stay.

    Attributes:
        shares: Of a head's own epochs, ascending, between 0 and 1.
        stays: Is asked of each head that it scored: its run's number, the share, the score. What it says must not
            depend on other heads of this stack.
    """

    rungs: tuple[float, ...] = ()
    keeps_training: Callable[[int, float, float], bool] = lambda run, share, score: True

    def resolve_epochs(self, epochs: int) -> dict[int, float]:
        """Epochs done -> the share that they are; of equal ones the last, and none at the end."""
        return {n: share for share in self.rungs if 0 < (n := round(share * epochs)) < epochs}


def score_fusions(
    runs: list[Run],
    context: WorkerContext,
    *,
    fusion_batch_size: int = DEFAULT_FUSION_BATCH_SIZE,
    pruning_schedule: PruningSchedule | None = None,
) -> Iterator[tuple[list[int], list[Metrics]]]:
    """`run.score_fold` of each run, none of which `why_alone` keeps out: numbers of runs and their scores.

    A head that does not fit into a GPU's memory, even alone, has the score NaN. With `looks` there is a score
    `look_<share>` for each, and a head that did not stay has its last one, and that `share`.
    """
    pruning_schedule = pruning_schedule or PruningSchedule()
    inputs = _SharedInputs(context)
    for run in runs:
        check_disjoint(run.split)
    steps = [inputs.get_loader(run, inputs.prepare(run)).steps_per_epoch for run in runs]
    pending = list(plan_stacks(list(zip(runs, steps, strict=True)), fusion_batch_size))
    while pending:
        numbers = pending.pop(0)
        size = sum(p.numel() for p in inputs.prepare(runs[numbers[0]]).module.parameters())
        max_members = max(1, MAX_STACK_PARAMETERS // size)
        if len(numbers) > max_members:
            pending[:0] = [numbers[start : start + max_members] for start in range(0, len(numbers), max_members)]
            continue
        try:
            stack_schedule = replace(
                pruning_schedule,
                keeps_training=partial(_keeps_training_in_stack, pruning_schedule.keeps_training, numbers),
            )
            metrics = _train_and_score([runs[n] for n in numbers], inputs, context, stack_schedule)
        except torch.cuda.OutOfMemoryError:
            half = len(numbers) // 2
            if half:
                pending[:0] = [numbers[:half], numbers[half:]]
                continue
            metrics = [{SELECTION_METRIC: float("nan")}]
        yield numbers, metrics


def _keeps_training_in_stack(
    keeps_training: Callable[[int, float, float], bool], numbers: list[int], member: int, *rung_and_score: float
) -> bool:
    return keeps_training(numbers[member], *rung_and_score)


def _train_and_score(
    runs: list[Run], inputs: "_SharedInputs", context: WorkerContext, pruning_schedule: PruningSchedule
) -> list[Metrics]:
    members = [inputs.make_member(run) for run in runs]
    due = [pruning_schedule.resolve_epochs(head.optim.epochs) for head in members]
    rung_scores: list[Metrics] = [{} for _ in members]
    pruned: dict[int, Metrics] = {}

    def report_intermediate(epoch: int, stack: FusionStack, rows: dict[int, int]) -> set[int]:
        """Scores of heads that are due after so many epochs; returns those that do not stay."""
        scored = _validate_members(
            stack, {h: row for h, row in rows.items() if epoch in due[h]}, runs, members, context
        )
        for h, metrics in ((h, metrics) for h, metrics in scored.items() if metrics):
            rung, score = due[h][epoch], metrics[SELECTION_METRIC]
            rung_scores[h][format_rung_column(rung)] = score
            if not pruning_schedule.keeps_training(h, rung, score):
                pruned[h] = metrics | {"share": rung}
        return scored.keys() & pruned.keys()

    stack = train_fusions(members, context.device, report_intermediate=report_intermediate if any(due) else None)
    completed = _validate_members(stack, {h: h for h in range(len(members)) if h not in pruned}, runs, members, context)
    metrics = completed | pruned
    return [metrics[h] | rung_scores[h] for h in range(len(members))]


def plan_stacks(runs: list[tuple[Run, int]], fusion_batch_size: int) -> Iterator[list[int]]:
    """Numbers of runs that can be trained in one stack: of one structure, and with as many steps an epoch.

    Args:
        runs: Each with its steps an epoch.
    """
    compatible: dict[Any, list[int]] = {}
    for number, (run, steps) in enumerate(runs):
        e = run.experiment
        # What each head of a stack has for itself.
        per_member = (
            {"heads": 1} if e.fusion.kind == "shared_attention" and e.fusion.heads <= PADDED_ATTENTION_HEADS else {}
        )
        weight_loss = float(e.fusion.modality_weight_loss > 0)
        fusion = replace(e.fusion, dropout=0.0, modality_dropout=0.0, modality_weight_loss=weight_loss, **per_member)
        names = tuple(sorted(e.data.modalities))
        key = (fusion, names, e.optim.batch, e.optim.label_smoothing, e.optim.clip > 0, steps)
        compatible.setdefault(key, []).append(number)
    for numbers in compatible.values():
        # Those that end first lie together: what is left of a stack is as full as can be.
        numbers.sort(key=lambda n: runs[n][0].epochs)
        for start in range(0, len(numbers), fusion_batch_size):
            yield numbers[start : start + fusion_batch_size]


@dataclass(frozen=True)
class FusionMember:
    """One fusion to train, with fresh weights, and its batches."""

    module: FusionClassifier
    optim: OptimConfig
    loader: BatchLoader


@dataclass(frozen=True)
class DropoutDraw:
    """What dropout draws once."""

    shape: tuple[int, ...]  # batch first
    dtype: torch.dtype
    padded_shape: tuple[int, ...]  # of a window, where heads are filled up


class FusionStack:
    """The weights of several heads of one structure and their optimizer state, one row a head.

    Args:
        modules: With fresh weights, on `device`.
        optims: `weight_decay` and `clip` of each count.
    """

    def __init__(self, modules: list[FusionClassifier], optims: list[OptimConfig], device: torch.device) -> None:
        fusions = [cast(Fusion, module.fusion) for module in modules]
        self._dropout = [max((m.p for m in f.modules() if isinstance(m, nn.Dropout)), default=0.0) for f in fusions]
        # Where one drops, the structure must ask for masks; a head without dropout gets ones.
        self.module = modules[int(np.argmax(self._dropout))]
        self.names = self.module.modalities
        # Matrices, which decay, lie before vectors, which do not.
        parameters = sorted(self.module.named_parameters(), key=lambda named: named[1].ndim < 2)
        self._shapes = {name: p.shape for name, p in parameters}
        self._decayed = sum(p.numel() for _, p in parameters if p.ndim > 1)
        rows = [[dict(module.named_parameters())[name].detach() for name in self._shapes] for module in modules]
        flat = torch.stack([torch.cat([p.flatten() for p in row]) for row in rows]).to(device)
        self._weights = flat.requires_grad_()
        self._moments = torch.zeros_like(flat), torch.zeros_like(flat)
        self._step_count = torch.zeros((), dtype=torch.float32, device=device)
        self._decay = [optim.weight_decay for optim in optims]
        self._clip = torch.tensor([optim.clip for optim in optims], dtype=flat.dtype, device=device)
        self._smoothing, self._batch = optims[0].label_smoothing, optims[0].batch
        self._weight_loss = torch.tensor([f.weight_loss for f in fusions], dtype=flat.dtype, device=device)
        self._draws: dict[tuple[int, int], tuple[list[DropoutDraw], bool]] = {}
        # Of shared attention: which channels belong to which head of each row.
        parts = [f.heads_HD.to(device) for f in fusions if isinstance(f, SharedAttentionFusion)]
        self._head_counts = [len(p) for p in parts] or [0] * len(modules)
        most = max(self._head_counts, default=0)
        self._exact_heads = {len(p): p for p in parts}
        self._padded_heads = (
            torch.stack(
                [pad_rows(p, PADDED_ATTENTION_HEADS if most <= PADDED_ATTENTION_HEADS else most, 0) for p in parts]
            )
            if parts
            else None
        )

    def __len__(self) -> int:
        return len(self._decay)

    def copy_weights(self, row: int) -> dict[str, Tensor]:
        """One head's parameters by name."""
        return {name: p[row].detach().clone() for name, p in self._split_parameters().items()}

    def select_members(self, rows: list[int]) -> None:
        """Go on with these heads only."""
        self._weights = self._weights.detach()[rows].requires_grad_()
        self._moments = self._moments[0][rows], self._moments[1][rows]
        self._decay, self._dropout = [self._decay[r] for r in rows], [self._dropout[r] for r in rows]
        self._clip, self._weight_loss = self._clip[rows], self._weight_loss[rows]
        self._head_counts = [self._head_counts[r] for r in rows]
        self._padded_heads = None if self._padded_heads is None else self._padded_heads[rows]

    def _split_parameters(self) -> dict[str, Tensor]:
        parts = self._weights.split([shape.numel() for shape in self._shapes.values()], 1)
        return {name: p.unflatten(1, shape) for (name, shape), p in zip(self._shapes.items(), parts, strict=True)}

    def _list_buffers(self) -> dict[str, Tensor]:
        """What of a module is neither trained nor the same in all rows."""
        return {} if self._padded_heads is None else {"fusion.heads_HD": self._padded_heads}

    def step(self, batches: list[Batch], stream: list[int], lr: list[float]) -> Tensor:
        """One step of AdamW of every head, on its own batch.

        Args:
            batches: As a `Loader` of one rank makes them.
            stream: Which of them each head gets.
            lr: Of each head.
        Returns:
            (heads,) each head's summed loss.
        """
        learns_weights = self._plan_dropout(batches[0], self._head_counts[0])[1]
        data = self._stack_batches(batches, stream, self._batch)
        masks = self._draw_masks(batches, stream)
        count = torch.tensor([batches[s].global_count for s in stream], device=self._weights.device)

        def compute_loss(
            parameters: dict[str, Tensor], data: dict[str, Tensor], masks: list[Tensor], share: Tensor
        ) -> Any:
            output, batch = self._forward(parameters, data, masks)
            total = compute_loss_sum(output.logits_BK, batch, self._smoothing)
            return total, total + share * compute_modality_weight_loss(output, batch) if learns_weights else total

        self.module.train()
        total, every = vmap(compute_loss)(
            self._split_parameters() | self._list_buffers(), data, masks, self._weight_loss
        )
        (gradient,) = torch.autograd.grad((every / count).sum(), self._weights)
        self._update(gradient, lr)
        return total.detach()

    @torch.no_grad()
    def compute_logits(self, batch: Batch, rows: list[int]) -> Tensor:
        """(heads, batch, classes): what these heads say of the same windows, in eval mode."""
        padded_rows = duplicate_single(rows)
        data = self._stack_batches([batch], [0] * len(padded_rows), len(batch.label_B))
        parameters = {name: p[padded_rows] for name, p in (self._split_parameters() | self._list_buffers()).items()}

        def compute_one(parameters: dict[str, Tensor], data: dict[str, Tensor]) -> Tensor:
            return self._forward(parameters, data, [])[0].logits_BK

        self.module.eval()
        return vmap(compute_one)(parameters, data)[: len(rows)]

    def _forward(self, parameters: dict[str, Tensor], data: dict[str, Tensor], masks: list[Tensor]) -> Any:
        inputs = {name: x for name, x in data.items() if "." in name}
        batch = Batch(inputs, data["present"], data["label"], data["weight"], 0, 0)
        with BatchedFusionMode(masks):
            encoded, logits = self.module.encode(inputs, batch.present_BM)
            named = {name.removeprefix("fusion."): p for name, p in parameters.items()}
            fused = functional_call(cast(nn.Module, self.module.fusion), named, (encoded, logits, batch.present_BM))
        return cast_output_to_float32(
            ClassifierOutput(fused.logits_BK, logits, fused.weights_BM, fused.corrected_BM)
        ), batch

    def _stack_batches(self, batches: list[Batch], stream: list[int], size: int) -> dict[str, Tensor]:
        """Each head's batch, filled up with rows of weight 0 to a size that does not depend on the other heads.

        Each has a copy of its own: products with shared ones would be computed in another way.
        """
        device = self._weights.device
        columns = [b.inputs | {"present": b.present_BM, "label": b.label_B, "weight": b.weight_B} for b in batches]
        chosen, data = torch.tensor(stream, device=device), {}
        for name in columns[0]:
            filled = torch.stack([pad_rows(c[name], size, 0 if name == "weight" else None) for c in columns])
            data[name] = filled.to(device)[chosen]
        return data

    def _plan_dropout(self, batch: Batch, heads: int) -> tuple[list["DropoutDraw"], bool]:
        """What a head alone draws for a batch of this size, and whether its modality weights learn.

        Args:
            heads: Of its attention.
        """
        size = len(batch.label_B)
        if (size, heads) not in self._draws:
            self.module.train()
            device = self._weights.device
            inputs = {name: x.to(device) for name, x in batch.inputs.items()}
            padded = self._padded_heads[0] if self._padded_heads is not None else None
            seen, output = self._record_dropout(inputs, batch.present_BM.to(device), self._exact_heads.get(heads))
            stacked, _ = self._record_dropout(inputs, batch.present_BM.to(device), padded)
            learns = output.corrected_BM.requires_grad and bool((self._weight_loss > 0).any())
            draws = [
                DropoutDraw(shape, dtype, wider[1:]) for (shape, dtype), (wider, _) in zip(seen, stacked, strict=True)
            ]
            self._draws[size, heads] = draws, learns
        return self._draws[size, heads]

    def _record_dropout(
        self, inputs: dict[str, Tensor], present_BM: Tensor, heads_HD: Tensor | None
    ) -> tuple[list[tuple[tuple[int, ...], torch.dtype]], ClassifierOutput]:
        recorder = DropoutRecorder()
        buffers = {} if heads_HD is None else {"fusion.heads_HD": heads_HD}
        with recorder:
            output = functional_call(self.module, buffers, (inputs, present_BM))
        return recorder.draws, output

    def _draw_masks(self, batches: list[Batch], stream: list[int]) -> list[Tensor]:
        """Dropout masks of every head, as it would draw them alone (`engine._Common._loss`)."""
        if not any(self._dropout):
            draws, _ = self._plan_dropout(batches[0], self._head_counts[0])
            return [torch.ones(len(self), 1, device=self._weights.device) for _ in draws]
        device, size = self._weights.device, self._batch
        masks_by_draw: dict[tuple[int, int, int, float], list[Tensor]] = {}
        rows = []
        for s, p, heads in zip(stream, self._dropout, self._head_counts, strict=True):
            key = (batches[s].seed, len(batches[s].label_B), heads, p)
            if key not in masks_by_draw:
                draws, _ = self._plan_dropout(batches[s], heads)  # which draws too: before the seed
                torch.manual_seed(batches[s].seed * 1024)
                found = []
                for draw in draws:
                    mask = nn.functional.dropout(torch.ones(draw.shape, dtype=draw.dtype, device=device), p)
                    # Rows that are no heads drop nothing.
                    short = [wide - n for wide, n in zip(draw.padded_shape, mask.shape[1:], strict=True)]
                    mask = nn.functional.pad(mask, [n for more in reversed(short) for n in (0, more)], value=1.0)
                    found.append(pad_rows(mask, size, 1))
                masks_by_draw[key] = found
            rows.append(masks_by_draw[key])
        return [torch.stack(masks) for masks in zip(*rows, strict=True)]

    @torch.no_grad()
    def _update(self, gradient: Tensor, lr: list[float]) -> None:
        clip = [1.0] * len(self)
        if self._clip[0] > 0:
            clip = (self._clip / (gradient.norm(dim=1) + 1e-6)).clamp(max=1).tolist()
        weights, (first, second) = self._weights.detach(), self._moments
        for row, (rate, decay) in enumerate(zip(lr, self._decay, strict=True)):
            if clip[row] != 1:
                gradient[row].mul_(clip[row])
            for part, wd in ((slice(None, self._decayed), decay), (slice(self._decayed, None), 0.0)):
                w, g, m, v = ([x[row, part]] for x in (weights, gradient, first, second))
                adamw(
                    w,
                    g,
                    m,
                    v,
                    [],
                    [self._step_count.clone()],  # which it counts up
                    fused=True,
                    amsgrad=False,
                    beta1=BETAS[0],
                    beta2=BETAS[1],
                    lr=rate,
                    weight_decay=wd,
                    eps=EPS,
                    maximize=False,
                )
        self._step_count += 1


def train_fusions(
    members: list[FusionMember],
    device: torch.device,
    on_step: Callable[[int, list[float]], None] = lambda step, losses: None,
    report_intermediate: Callable[[int, FusionStack, dict[int, int]], set[int]] | None = None,
) -> FusionStack:
    """Train every head to its own last epoch.

    Args:
        heads: Of one structure, with as many steps an epoch (`stacks`).
        told: The summed losses of each step, of the heads that are still trained.
        look: Is shown the heads that are trained after each epoch: how many are done, the stack, and the row of each.
            Those that it returns end there.
    Returns:
        All heads, finished, in their order.
    """
    rates = [make_lr_schedule(member.optim, member.loader.steps_per_epoch) for member in members]
    streams = list({id(head.loader): head.loader for head in members}.values())  # heads may share batches
    stream_numbers = {id(loader): number for number, loader in enumerate(streams)}
    stream_of = [stream_numbers[id(head.loader)] for head in members]
    final_weights: dict[int, dict[str, Tensor]] = {}
    running, number = duplicate_single(range(len(members))), 0
    stack = FusionStack([members[h].module for h in running], [members[h].optim for h in running], device)
    for epoch in range(max(head.optim.epochs for head in members)):
        used = sorted({stream_of[h] for h in running})
        stream = [used.index(stream_of[h]) for h in running]
        loaders = (streams[s].batches(Position(epoch, 0)) for s in used)
        for step, batches in enumerate(zip(*loaders, strict=True)):
            losses = stack.step(list(batches), stream, [rates[h](Position(epoch, step)) for h in running])
            on_step(number, losses[: len(set(running))].tolist())
            number += 1
        rows = {h: row for row, h in enumerate(running)}
        finishing = {h for h in rows if members[h].optim.epochs == epoch + 1}
        if report_intermediate and (open_rows := {h: row for h, row in rows.items() if h not in finishing}):
            finishing |= report_intermediate(epoch + 1, stack, open_rows)
        final_weights |= {h: stack.copy_weights(rows[h]) for h in finishing}
        left = duplicate_single(row for row, h in enumerate(running) if h not in final_weights)
        if left and left != list(range(len(running))):
            stack.select_members(left)
        running = [running[row] for row in left]
        if not running:
            break
    for h, head in enumerate(members):
        head.module.load_state_dict(final_weights[h], strict=False)
    return FusionStack([head.module for head in members], [head.optim for head in members], device)


def duplicate_single(rows: Iterable[int]) -> list[int]:
    """A single one twice: products of a stack of one are computed in another way than those of two or more."""
    found = list(rows)
    return 2 * found if len(found) == 1 else found


class _SharedInputs:
    """What several runs share: embeddings by their encoders, labels, batches."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._sources: dict[Any, Source] = {}
        self._labels: dict[Any, WindowLabels] = {}
        self._loaders: dict[Any, BatchLoader] = {}

    def prepare(self, run: Run) -> PreparedRun:
        e = run.experiment
        source = (tuple(sorted(run.encoder_keys.items())), run.embedded_recordings, e.fusion.uses_pooled_features)
        if source not in self._sources:
            self._sources[source] = open_source(run, self._context)
        labels = (e.data, e.seed)
        if labels not in self._labels:
            self._labels[labels] = build_labels(run, self._context)
        return prepare_run(run, self._context, fresh=True, source=self._sources[source], labels=self._labels[labels])

    def get_loader(self, run: Run, prepared: PreparedRun) -> BatchLoader:
        """One and the same for runs with the same batches."""
        e = run.experiment
        key = (id(prepared.source), run.split, e.seed, e.optim.batch, e.optim.class_weights, e.fusion.modality_dropout)
        if key not in self._loaders:
            self._loaders[key] = build_batch_loader(run, self._context, prepared)
        return self._loaders[key]

    def make_member(self, run: Run) -> FusionMember:
        prepared = self.prepare(run)
        assert isinstance(prepared.module, FusionClassifier)
        return FusionMember(prepared.module.to(self._context.device), run.optim, self.get_loader(run, prepared))


def pad_rows(x: Tensor, size: int, value: float | None) -> Tensor:
    """As many rows, the new ones of one value, or like the first."""
    short = size - len(x)
    if not short:
        return x
    first = x[:1] if value is None else torch.full_like(x[:1], value)
    return torch.cat([x, first.expand(short, *x.shape[1:])])


class DropoutRecorder(TorchFunctionMode):
    """Notes the shape and dtype of everything that dropout draws, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[tuple[tuple[int, ...], torch.dtype]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.dropout and kwargs.get("p", args[1] if len(args) > 1 else 0.5):
            self.draws.append((tuple(args[0].shape), args[0].dtype))
        if func is nn.functional.scaled_dot_product_attention and kwargs.get("dropout_p"):
            q, k = args[:2]
            self.draws.append(((*q.shape[:-1], k.shape[-2]), q.dtype))
        return func(*args, **kwargs)


class BatchedFusionMode(TorchFunctionMode):
    """In which a module computes one of many heads: with given dropout masks, and linear maps of matrices."""

    def __init__(self, masks: list[Tensor]) -> None:
        super().__init__()
        self._masks = iter(masks)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.dropout:
            drops = kwargs.get("p", args[1] if len(args) > 1 else 0.5) and kwargs.get("training", args[2:3] != (False,))
            return args[0] * next(self._masks) if drops else args[0]
        # Neither is there a batched kernel of attention.
        if func is nn.functional.scaled_dot_product_attention:
            q, k, v = args
            drop = next(self._masks) if kwargs.get("dropout_p") else None
            return _compute_attention(q, k, v, kwargs.get("attn_mask"), drop)
        if func is nn.functional.multi_head_attention_forward:
            kwargs["need_weights"] = True
        # Of all windows and tokens at once: batched over heads, it would else be a product for each window.
        if func is nn.functional.linear and args[0].ndim > 2:
            x = args[0]
            return func(x.flatten(0, -2), *args[1:], **kwargs).unflatten(0, x.shape[:-1])
        return func(*args, **kwargs)


def _compute_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, drop: Tensor | None) -> Tensor:
    scores = (q @ k.transpose(-2, -1)) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    attention = scores.softmax(-1)
    return (attention if drop is None else attention * drop) @ v


def _validate_members(
    stack: FusionStack, rows: dict[int, int], runs: list[Run], members: list[FusionMember], context: WorkerContext
) -> dict[int, Metrics]:
    """`validation_` scores of heads on their own split's validation rows.

    Args:
        rows: Head -> its row of the stack.
    """
    by_split: dict[Any, list[int]] = {}
    for h in rows:
        by_split.setdefault((id(members[h].loader.source), runs[h].split), []).append(h)
    metrics: dict[int, Metrics] = {h: {} for h in rows}
    for numbers in by_split.values():
        run, loader = runs[numbers[0]], members[numbers[0]].loader
        windows = select_rows_with_modality(
            context.windows, run.split.validation, tuple(run.experiment.data.modalities)
        )
        batches = make_inference_batches(loader.source, loader.labels, windows, VALIDATION_BATCH_SIZE)
        parts = [stack.compute_logits(batch, [rows[h] for h in numbers]).cpu().numpy() for _, batch in batches]
        recording = context.windows.ids.iloc[windows].groupby(["subject", "recording"]).ngroup().to_numpy()
        for h, logits_VK in zip(numbers, np.concatenate(parts, 1) if parts else [], strict=False):
            scored = compute_scores_from_logits(logits_VK, loader.labels.label[windows], recording, always_present=True)
            metrics[h] = {f"validation_{k}": v for k, v in scored.items()}
    return metrics

"""Many fusions trained together on the embedding cache, as one batched computation.

A fusion on cached embeddings is so small that most of its training is the overhead of its operations. Here the weights
of many are stacked, and each operation serves all of them. Every fusion keeps what is its own: initial weights, data
order, modality dropout and dropout masks, learning rate, weight decay and length. It ends where
`runner.train_and_score_split` would have ended, up to rounding.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eav_ray.config import OptimConfig, digest
from eav_ray.config.fusion.shared_attention import SharedAttentionConfig
from eav_ray.data.splits import check_disjoint
from eav_ray.models.classifier import FusionClassifier
from eav_ray.training.dataloader import (
    BatchLoader,
    Source,
    WindowLabels,
    make_inference_batches,
    select_rows_with_modality,
)
from eav_ray.training.loop import Metrics, make_lr_schedule
from eav_ray.training.metrics import RECORDING_COLUMNS, compute_scores_from_logits, compute_scores_from_values
from eav_ray.training.prepared_run import (
    PreparedRun,
    WorkerContext,
    build_batch_loader,
    build_labels,
    open_source,
    prepare_run,
)
from eav_ray.training.run_spec import SELECTION_METRIC, Position, Run
from eav_ray.tuning.fusion_stack import PADDED_ATTENTION_HEADS, FusionStack, duplicate_single
from eav_ray.tuning.pruning import PruningSchedule, format_rung_column

DEFAULT_FUSION_BATCH_SIZE = 64  # fusions of a stack; from about 16 on more gain little, and take memory


VALIDATION_BATCH_SIZE = 64  # windows, however many fusions: another number could round otherwise


MAX_STACK_PARAMETERS = 50_000_000  # of a stack; they are there four times, with gradients and moments


def unbatchable_reason(run: Run) -> str:
    """What keeps a fusion run out of a stack, as a phrase; empty where nothing does."""
    e = run.experiment
    if not e.fusion.has_parameters:
        return f"fusion.kind={e.fusion.kind} has nothing to train"
    if not e.fusion.is_batchable:
        return f"fusion.kind={e.fusion.kind} is trained alone"
    if e.optim.mixup:
        return "optim.mixup draws other windows for each head"
    if e.runtime.precision != "fp32":
        return f"runtime.precision={e.runtime.precision}"
    if 0 < e.runtime.micro_batch < e.optim.batch:
        return f"runtime.micro_batch={e.runtime.micro_batch} splits its batches"
    return ""


def score_fusions(
    runs: list[Run],
    context: WorkerContext,
    *,
    fusion_batch_size: int = DEFAULT_FUSION_BATCH_SIZE,
    pruning_schedule: PruningSchedule | None = None,
) -> Iterator[tuple[list[int], list[Metrics]]]:
    """`runner.train_and_score_split` of each run, none of which `unbatchable_reason` keeps out: numbers of runs and
    their scores.

    A fusion that does not fit into a GPU's memory, even alone, has the score NaN. With `pruning_schedule` there is a
    score `rung_<share>` for each, and a fusion that was pruned has its last one, and that `epochs_share`.
    """
    pruning_schedule = pruning_schedule or PruningSchedule()
    inputs = _SharedInputs(context)
    for run in runs:
        check_disjoint(run.split)
    steps = [inputs.get_loader(inputs.prepare(run)).steps_per_epoch for run in runs]
    pending = list(plan_stacks(list(zip(runs, steps, strict=True)), fusion_batch_size))
    while pending:
        numbers = pending.pop(0)
        size = sum(p.numel() for p in inputs.prepare(runs[numbers[0]]).module.parameters())
        max_members = max(1, MAX_STACK_PARAMETERS // size)
        if len(numbers) > max_members:
            pending[:0] = [numbers[start : start + max_members] for start in range(0, len(numbers), max_members)]
            continue
        try:
            metrics = _train_and_score(runs, numbers, inputs, pruning_schedule)
        except torch.cuda.OutOfMemoryError:
            half = len(numbers) // 2
            if half:
                pending[:0] = [numbers[:half], numbers[half:]]
                continue
            metrics = [{SELECTION_METRIC: float("nan")}]
        yield numbers, metrics


def _train_and_score(
    runs: list[Run], numbers: list[int], inputs: "_SharedInputs", pruning_schedule: PruningSchedule
) -> list[Metrics]:
    """Train the fusions of these numbers as one stack."""
    members = [inputs.make_member(runs[n]) for n in numbers]
    due = [pruning_schedule.resolve_epochs(head.optim.epochs) for head in members]
    rung_scores: list[Metrics] = [{} for _ in members]
    pruned: dict[int, Metrics] = {}

    def validate(stack: FusionStack, rows: dict[int, int]) -> dict[int, Metrics]:
        return _validate_members(stack, rows, [runs[n] for n in numbers], members, inputs.context)

    def report_intermediate(epoch: int, stack: FusionStack, rows: dict[int, int]) -> set[int]:
        """Score the fusions that are due after so many epochs; returns those that are pruned."""
        scored = validate(stack, {h: row for h, row in rows.items() if epoch in due[h]})
        for h, metrics in ((h, metrics) for h, metrics in scored.items() if metrics):
            rung, score = due[h][epoch], metrics[SELECTION_METRIC]
            rung_scores[h][format_rung_column(rung)] = score
            if not pruning_schedule.keeps_training(numbers[h], rung, score):
                pruned[h] = metrics | {"epochs_share": rung}
        return scored.keys() & pruned.keys()

    device = inputs.context.device
    stack = train_fusions(members, device, report_intermediate=report_intermediate if any(due) else None)
    metrics = validate(stack, {h: h for h in range(len(members)) if h not in pruned}) | pruned
    return [metrics[h] | rung_scores[h] for h in range(len(members))]


def plan_stacks(runs: list[tuple[Run, int]], fusion_batch_size: int) -> Iterator[list[int]]:
    """Numbers of runs that can be trained in one stack: of one structure, and with as many steps an epoch.

    Args:
        runs: Each with its steps an epoch.
    """
    compatible: dict[Any, list[int]] = {}
    for number, (run, steps) in enumerate(runs):
        e = run.experiment
        # What each fusion of a stack has for itself.
        fusion, learns_weights = e.fusion.drop_training_keys(), e.fusion.modality_weight_loss > 0
        if isinstance(fusion, SharedAttentionConfig) and fusion.heads <= PADDED_ATTENTION_HEADS:
            fusion = replace(fusion, heads=1)
        names = tuple(sorted(e.data.modalities))
        key = (fusion, learns_weights, names, e.optim.batch, e.optim.label_smoothing, e.optim.clip > 0, steps)
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


def train_fusions(
    members: list[FusionMember],
    device: torch.device,
    on_step: Callable[[int, list[float]], None] = lambda step, losses: None,
    report_intermediate: Callable[[int, FusionStack, dict[int, int]], set[int]] | None = None,
) -> FusionStack:
    """Train every fusion to its own last epoch.

    Args:
        members: Of one structure, with as many steps an epoch (`plan_stacks`).
        on_step: The summed losses of each step, of the fusions that are still trained.
        report_intermediate: Is shown the fusions that are trained after each epoch: how many are done, the stack, and
            the row of each. Those that it returns end there.
    Returns:
        All fusions, finished, in their order.
    """
    rates = [make_lr_schedule(member.optim, member.loader.steps_per_epoch) for member in members]
    streams = list({id(head.loader): head.loader for head in members}.values())  # fusions may share batches
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


class _SharedInputs:
    """What several runs share: embeddings by their encoders, labels, batches."""

    def __init__(self, context: WorkerContext) -> None:
        self.context = context
        self._sources: dict[Any, Source] = {}
        self._labels: dict[Any, WindowLabels] = {}
        self._loaders: dict[Any, BatchLoader] = {}

    def prepare(self, run: Run) -> PreparedRun:
        e = run.experiment
        source = (tuple(sorted(run.encoder_keys.items())), run.embedded_recordings, e.fusion.uses_pooled_features)
        if source not in self._sources:
            self._sources[source] = open_source(run, self.context)
        labels = (digest(e.data), e.seed)
        if labels not in self._labels:
            self._labels[labels] = build_labels(run, self.context)
        return prepare_run(run, self.context, fresh=True, source=self._sources[source], labels=self._labels[labels])

    def get_loader(self, prepared: PreparedRun) -> BatchLoader:
        """One and the same for runs with the same batches."""
        run, e = prepared.run, prepared.run.experiment
        key = (id(prepared.source), run.split, e.seed, e.optim.batch, e.optim.class_weights, e.fusion.modality_dropout)
        if key not in self._loaders:
            self._loaders[key] = build_batch_loader(prepared)
        return self._loaders[key]

    def make_member(self, run: Run) -> FusionMember:
        prepared = self.prepare(run)
        assert isinstance(prepared.module, FusionClassifier)
        return FusionMember(prepared.module.to(self.context.device), run.optim, self.get_loader(prepared))


def _validate_members(
    stack: FusionStack, rows: dict[int, int], runs: list[Run], members: list[FusionMember], context: WorkerContext
) -> dict[int, Metrics]:
    """`validation_` scores of fusions on their own split's validation rows.

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
        recording = context.windows.ids.iloc[windows].groupby(RECORDING_COLUMNS).ngroup().to_numpy()
        for h, logits_VK in zip(numbers, np.concatenate(parts, 1) if parts else [], strict=False):
            scored = _compute_scores(logits_VK, loader.labels, windows, recording, context)
            metrics[h] = {f"validation_{k}": v for k, v in scored.items()}
    return metrics


def _compute_scores(
    logits_VK: np.ndarray, labels: WindowLabels, windows: np.ndarray, recording_V: np.ndarray, context: WorkerContext
) -> Metrics:
    """Score what one fusion says of these windows."""
    if labels.scale is None:
        return compute_scores_from_logits(logits_VK, labels.label[windows], recording_V, always_present=True)
    values_VK, subject_V = labels.scale.restore(logits_VK), context.windows.ids["subject"].to_numpy()[windows]
    return compute_scores_from_values(values_VK, labels.label[windows], recording_V, subject_V)

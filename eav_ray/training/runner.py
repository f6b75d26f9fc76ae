"""One training from start to committed checkpoint, on one rank of a group. Knows nothing of Ray."""

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from eav_ray.data.splits import check_disjoint
from eav_ray.errors import TrainingInterrupted
from eav_ray.models.classifier import Classifier, HeadClassifier
from eav_ray.storage import Store
from eav_ray.training.checkpoint import (
    OpenedCheckpoint,
    find_finished_checkpoints,
    load_latest_checkpoint,
    make_attempt_name,
)
from eav_ray.training.checkpoint_files import Checkpoint
from eav_ray.training.checkpoint_writer import CheckpointPolicy, CheckpointWriter
from eav_ray.training.collectives import (
    broadcast_object,
    gather_from_all_ranks,
    rank_and_world_size,
    run_on_all_ranks,
    run_on_first_rank,
)
from eav_ray.training.dataloader import (
    make_inference_batches,
    prefetch,
    select_rows_with_modality,
    subsample_evenly,
)
from eav_ray.training.embeddings import (
    EmbeddingSource,
    build_embedding_key,
    commit_embeddings,
    compute_embeddings,
    get_token_times,
    has_embeddings,
    is_embedded,
    write_embedding_part,
)
from eav_ray.training.engines.base import Engine, limit_training
from eav_ray.training.engines.select import make_engine
from eav_ray.training.loop import Metrics, fit, make_lr_schedule
from eav_ray.training.metrics import compute_scores
from eav_ray.training.modality_collapse import find_modality_collapse
from eav_ray.training.positions import MAX_REQUESTS
from eav_ray.training.predictions import build_empty_predictions, predict_rows
from eav_ray.training.prepared_run import (
    PreparedRun,
    WorkerContext,
    build_batch_loader,
    build_module,
    open_features,
    prepare_run,
)
from eav_ray.training.run_spec import Position, Progress, Run
from eav_ray.training.training_scores import score_training_recordings

MAX_COLLAPSE_WINDOWS = 512  # that the collapse check looks at, evenly taken
EMBEDDING_PART_WINDOWS = 1024  # of one file; a file is in memory as a whole
LOCK_TIMEOUT_S = 30  # seconds to wait for the lock of a run


def find_finished_run(run: Run, results: Store) -> OpenedCheckpoint | None:
    """Find the finished checkpoint of a run, as `find_finished_runs`."""
    return find_finished_runs([run], results).get(run.key)


def find_finished_runs(runs: Sequence[Run], results: Store) -> dict[str, OpenedCheckpoint]:
    """Find the finished checkpoints of runs, by key, if the embeddings that are wanted of them exist too.

    Reads no tensors, and asks a remote store several things at a time.
    """
    found = find_finished_checkpoints(results, [run.key for run in runs])
    finished = {run.key: run for run in runs if run.key in found}
    with ThreadPoolExecutor(min(len(finished), MAX_REQUESTS) or 1) as pool:
        embedded = pool.map(partial(is_embedded, results=results), finished.values())
        return {key: found[key] for key, is_whole in zip(finished, embedded, strict=True) if is_whole}


def is_run_finished(run: Run, results: Store) -> bool:
    return find_finished_run(run, results) is not None


def execute_run(
    run: Run,
    context: WorkerContext,
    report: Callable[[Progress], None],
    get_stop_reason: Callable[[], str] = lambda: "",
) -> str:
    """Train, or continue, or skip what is finished; every rank of the group calls it.

    Args:
        get_stop_reason: Why the training should save and leave, empty if it should not; asked every few seconds, by
            every rank together.
    Returns:
        The prefix of the finished checkpoint in `place.results`.
    Raises:
        TrainingInterrupted: It was asked to leave, and saved.
        DataError: On every rank, if one rank has a reason: ranks that went on alone would wait for the others forever.
    """
    check_disjoint(run.split)
    with contextlib.ExitStack() as stack:

        def acquire_lock() -> Store:
            if rank_and_world_size()[0]:
                return context.results
            # Two jobs must not write one run. Workers of a group that has just died may hold it for seconds yet.
            lock = context.results.lock(f"runs/{run.key}/lock", timeout_s=LOCK_TIMEOUT_S, holder=context.holder)
            return stack.enter_context(lock)

        context = replace(context, results=run_on_all_ranks(acquire_lock))
        return _execute_locked(run, context, report, get_stop_reason)


def _execute_locked(
    run: Run, context: WorkerContext, report: Callable[[Progress], None], get_stop_reason: Callable[[], str]
) -> str:
    start = choose_start(run, context.results)
    if start.is_done:
        return start.prefix
    resume = start.checkpoint
    prepared = run_on_all_ranks(lambda: prepare_run(run, context, fresh=resume is None))
    if resume:
        module_state = prepared.module.state_dict()  # a checkpoint also holds encoders that the run does not train
        prepared.module.load_state_dict({n: t for n, t in resume.weights.items() if n in module_state})
    if resume and resume.state.finished:
        prefix = start.prefix
        prepared.module.to(context.device)
    else:
        prefix = CheckpointedTraining(prepared, report, get_stop_reason, resume, start.damaged).train()
    if run.kind == "encoder":
        _write_embeddings(prepared)
    return prefix


@dataclass(frozen=True)
class Start:
    """Where a run goes on."""

    prefix: str  # of the checkpoint; empty: from the start
    is_done: bool  # nothing is left to do
    checkpoint: Checkpoint | None  # loaded, unless it is done
    damaged: list[str]  # a line for each damaged checkpoint that was skipped


def choose_start(run: Run, results: Store) -> Start:
    """Choose where a run goes on: the first rank looks, and all ranks load the very same, or fail together.

    Raises:
        StorageError: On every rank, where the store does not answer one of them.
    """

    def choose() -> Start:
        if rank_and_world_size()[0]:
            return Start("", False, None, [])
        if finished := find_finished_run(run, results):
            return Start(finished.prefix, True, None, [])
        latest, damaged = load_latest_checkpoint(results, run.key)
        return Start(latest[0] if latest else "", False, latest[1] if latest else None, damaged)

    own = run_on_all_ranks(choose)
    prefix, is_done = broadcast_object(own.prefix), broadcast_object(own.is_done)
    damaged = broadcast_object(own.damaged)

    def load() -> Checkpoint | None:
        return OpenedCheckpoint(results, prefix).load() if prefix and not is_done else None

    return Start(prefix, is_done, run_on_all_ranks(lambda: own.checkpoint or load()), damaged)


def train_and_score_split(run: Run, context: WorkerContext) -> Metrics:
    """Train a fusion on one inner fold and score it on that fold's validation rows; nothing is kept."""
    return compute_validation_metrics(train_and_predict_split(run, context))


def train_and_predict_split(run: Run, context: WorkerContext) -> pd.DataFrame:
    """Train on the training rows of a split and predict its validation rows; nothing is kept.

    Returns:
        As `predictions.build_predictions` has them.
    """
    check_disjoint(run.split)
    prepared = prepare_run(run, context, fresh=True)
    collected: list[pd.DataFrame] = []

    def collect_predictions(engine: Engine, position: Position, sums: Metrics) -> None:
        engine.sync_buffers()
        if position.epoch == run.epochs:
            collected.append(predict_validation(prepared, engine))

    fit_phases(prepared, None, collect_predictions)
    (table,) = collected
    return table


def fit_phases(
    prepared: PreparedRun,
    resume: Checkpoint | None,
    on_epoch_end: Callable[[Engine, Position, Metrics], None],
    on_step_end: Callable[[Engine, Position, Metrics], None] = lambda engine, position, sums: None,
) -> None:
    """Train from where `resume` stopped, whose weights the module already holds, to the last epoch."""
    run, loader = prepared.run, build_batch_loader(prepared)
    # Sums of an epoch that was left in its middle are those of all ranks.
    partial_sums = resume.metrics.get("partial_sums") if resume and rank_and_world_size()[0] == 0 else None
    start = resume.state.position if resume else Position(0, 0)
    for phase in run.phases:
        if start >= Position(phase.end_epoch, 0):
            continue
        # At the border of two phases lie the moments of the one before, which had other parameters.
        mid_phase = resume is not None and start > Position(phase.first_epoch, 0)
        if isinstance(prepared.module, Classifier):
            limit_training(prepared.module, phase.optim, encoders_frozen=phase.encoders_frozen)
        optimizer_state = resume.optimizer_state if resume and mid_phase else None
        runtime, device = run.experiment.runtime, prepared.context.device
        engine = make_engine(prepared.module, phase.optim, runtime, device=device, resume=optimizer_state)
        fit(
            engine,
            start=start,
            stop=Position(phase.end_epoch, 0),
            lr=make_lr_schedule(phase.optim, loader.steps_per_epoch, first_epoch=phase.first_epoch),
            batches=lambda position: prefetch(loader.batches(position)),
            on_epoch_end=partial(on_epoch_end, engine),
            on_step_end=partial(on_step_end, engine),
            partial_sums=partial_sums,
        )
        engine.close()
        partial_sums = None
        start = Position(phase.end_epoch, 0)


def predict_validation(prepared: PreparedRun, engine: Engine) -> pd.DataFrame:
    """Predict the validation windows that have a modality of the run."""
    run, windows = prepared.run, prepared.context.windows
    rows = select_rows_with_modality(windows, run.split.validation, tuple(run.experiment.data.modalities))
    if not len(rows):
        return build_empty_predictions(prepared.source.names, prepared.shapes.n_outputs, prepared.labels.scale)
    return predict_rows(engine, prepared.source, prepared.labels, rows, windows, run.optim.batch)


def compute_validation_metrics(table: pd.DataFrame) -> Metrics:
    """Compute the scores of validation predictions; empty without any window."""
    return {f"validation_{k}": v for k, v in compute_scores(table).items()} if len(table) else {}


def _collect_collapse_findings(prepared: PreparedRun, weights: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Look at a trained fusion in a module of its own: an engine's gradients belong to all ranks."""
    run, context, source = prepared.run, prepared.context, prepared.source
    names = tuple(run.experiment.data.modalities)
    if len(names) < 2 or rank_and_world_size()[0]:  # rank 0 saves
        return []
    rows = select_rows_with_modality(context.windows, run.split.validation or run.split.train, names)
    module, _ = build_module(run, context, source)
    module.load_state_dict(weights)
    rows = subsample_evenly(rows, MAX_COLLAPSE_WINDOWS)
    batches = (batch for _, batch in make_inference_batches(source, prepared.labels, rows, run.optim.batch))
    return [asdict(f) for f in find_modality_collapse(module, batches, context.device)]


class CheckpointedTraining:
    """A run that is trained to its last epoch, and saved on the way; on one rank of a group."""

    def __init__(
        self,
        prepared: PreparedRun,
        report: Callable[[Progress], None],
        get_stop_reason: Callable[[], str],
        resume: Checkpoint | None = None,
        damaged: Sequence[str] = (),
    ) -> None:
        """
        Args:
            resume: The checkpoint to go on from, whose weights the module already holds.
            damaged: A line for each checkpoint that was skipped.
        """
        self._prepared, self._run, self._resume = prepared, prepared.run, resume
        self._report, self._get_stop_reason, self._damaged = report, get_stop_reason, tuple(damaged)
        module = prepared.module
        frozen_tensors = module.frozen_tensors if isinstance(module, HeadClassifier) else None
        results, index = prepared.context.results, prepared.context.windows.index
        self._writer = CheckpointWriter(
            self._run, results, index.classes, prepared.shapes, frozen_tensors, scale=prepared.labels.scale
        )
        self._history: list[Metrics] = list(resume.metrics.get("history", [])) if resume else []  # of finished epochs
        self._prefix = ""

    def train(self) -> str:
        """Fit, saving on the way; returns the prefix of the finished checkpoint."""
        with contextlib.closing(self._writer):
            module = self._prepared.module
            if not any(p.requires_grad for p in module.parameters()):  # a rule of fusion has nothing to train
                self._finish(module.state_dict(), Position(self._run.epochs, 0), {})
                return self._prefix
            self._steps_per_epoch = build_batch_loader(self._prepared).steps_per_epoch
            self._policy = CheckpointPolicy(self._run, self._steps_per_epoch, self._writer, self._get_stop_reason)
            fit_phases(self._prepared, self._resume, self._on_epoch_end, self._on_step_end)
            return self._prefix

    def _on_step_end(self, engine: Engine, position: Position, sums: Metrics) -> None:
        should_save, should_report, reason = self._policy.decide_after_step(position, engine)
        if should_save:
            engine.sync_buffers()
            partial_epoch = {"partial_sums": _sum_over_ranks(sums), "history": list(self._history)}
            self._writer.save(engine, position, partial_epoch)
        if should_report and position.step < self._steps_per_epoch:  # the last step is told with the epoch
            self._report_progress(engine, position, sums, {})
        if reason:
            self._writer.flush()
            raise TrainingInterrupted(reason)

    def _on_epoch_end(self, engine: Engine, position: Position, sums: Metrics) -> None:
        engine.sync_buffers()
        sums = _sum_over_ranks(sums)
        is_last = position.epoch == self._run.epochs
        metrics: Metrics = {"train_loss": sums["loss_sum"] / max(1, sums["count"])}
        validation: Metrics = {}
        if self._is_validated(position.epoch, is_last):
            validation = compute_validation_metrics(predict_validation(self._prepared, engine))
        epoch_record = {"epoch": position.epoch, "seconds": sums["seconds"], "windows": sums["count"]}
        self._history.append(epoch_record | metrics | validation)
        saved_metrics: dict[str, Any] = metrics | validation | {"history": list(self._history)}
        if is_last:
            if self._is_validated(position.epoch, is_last):
                saved_metrics |= score_training_recordings(self._prepared, engine)
            self._finish(engine.gather_weights(), position, saved_metrics)
        elif validation or position.epoch % self._run.experiment.train.checkpoint_epochs == 0:
            self._writer.save(engine, position, saved_metrics)
        self._report_progress(engine, position, sums, validation)

    def _is_validated(self, epoch: int, is_last: bool) -> bool:
        # What an encoder is worth that a fusion follows is measured where the fusion is.
        if self._run.kind == "encoder" and self._run.embedded_recordings:
            return False
        every = self._run.experiment.train.validate_epochs
        return is_last or bool(every and epoch % every == 0)

    def _finish(self, weights: dict[str, Tensor], position: Position, metrics: dict[str, Any]) -> None:
        findings = run_on_all_ranks(lambda: _collect_collapse_findings(self._prepared, weights))
        metrics = metrics | {"modality_collapse": findings}
        if self._run.expected_result:
            metrics |= {"expected_result": self._run.expected_result}
        self._prefix = self._writer.finish(weights, position, metrics)

    def _report_progress(self, engine: Engine, position: Position, sums: Metrics, validation: Metrics) -> None:
        if engine.rank:
            return
        run, seconds = self._run, max(1e-9, sums["seconds"])
        metrics = {
            "train_loss": sums["loss_sum"] / max(1, sums["count"]),
            "windows_per_s": sums["count"] / seconds,
            "data_wait_fraction": sums["wait_s"] / seconds,
            "checkpoint_pause_s": self._writer.pause_s,
        }
        epochs_done = position.epoch + position.step / self._steps_per_epoch
        step = position.epoch * self._steps_per_epoch + position.step
        self._report(Progress(run.key, run.title, epochs_done, run.epochs, step, metrics | validation, self._damaged))


def _sum_over_ranks(sums: Metrics) -> Metrics:
    """Over all ranks; seconds are those of the slowest."""
    each = gather_from_all_ranks(sums)
    return {k: (max if k in ("seconds", "wait_s") else sum)(s[k] for s in each) for k in sums}


def _write_embeddings(prepared: PreparedRun) -> None:
    """Embed all wanted recordings, each rank its share."""
    run, context, module = prepared.run, prepared.context, prepared.module
    key = build_embedding_key(run.key, run.embedded_recordings)
    rank, size = rank_and_world_size()
    if not run.embedded_recordings or run_on_first_rank(lambda: has_embeddings(context.results, key)):
        return
    # Their own attempt: one that died may have left parts of other ranks.
    attempt = run_on_first_rank(lambda: make_attempt_name(context.results, run.key))
    source = run_on_all_ranks(lambda: open_features(run, context)) if run.features_prefix else prepared.source

    def write_own_part() -> None:
        assert isinstance(module, Classifier | HeadClassifier)
        rows = context.windows.find_rows(run.embedded_recordings)[rank::size]
        if not len(rows):
            return
        precision = run.experiment.runtime.precision
        for part, some in enumerate(np.array_split(rows, -(-len(rows) // EMBEDDING_PART_WINDOWS))):
            batches = make_inference_batches(source, prepared.labels, some, 64)
            table = compute_embeddings(module, batches, context.windows, context.device, precision=precision)
            write_embedding_part(context.results, key, attempt, f"{rank:04d}-{part:04d}", table)

    run_on_all_ranks(write_own_part)
    if isinstance(source, EmbeddingSource):
        (times_s,) = source.times_s.values()
    else:
        assert isinstance(module, Classifier)
        times_s = get_token_times(module)
    run_on_first_rank(lambda: commit_embeddings(context.results, key, attempt, times_s))

"""One training from start to committed checkpoint, on one rank of a group. Knows nothing of Ray."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import pandas as pd
from torch import Tensor

from eav_ray.data.splits import check_disjoint
from eav_ray.errors import DataError, TrainingInterrupted
from eav_ray.models.classifier import Classifier, HeadClassifier
from eav_ray.storage import Store
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.checkpoint_writer import CheckpointPolicy, CheckpointWriter
from eav_ray.training.collectives import broadcast_object, gather_from_all_ranks, rank_and_world_size, run_on_all_ranks
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
    is_embedded,
    write_embedding_part,
)
from eav_ray.training.engines.base import Engine
from eav_ray.training.engines.select import make_engine
from eav_ray.training.loop import Metrics, fit, make_lr_schedule
from eav_ray.training.metrics import compute_scores
from eav_ray.training.modality_collapse import find_modality_collapse
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

MAX_COLLAPSE_WINDOWS = 512  # that the collapse check looks at, evenly taken


LOCK_TIMEOUT_S = 30  # seconds to wait for the lock of a run


def find_finished_checkpoint(run: Run, results: Store) -> str:
    """The prefix of the run's finished checkpoint, if there are also the embeddings that are wanted of it; or empty."""
    found, _ = ckpt.find_latest_checkpoint(results, run.key)
    return found[0] if found and found[1].finished and is_embedded(run, results) else ""


def is_run_finished(run: Run, results: Store) -> bool:
    return bool(find_finished_checkpoint(run, results))


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

        def acquire_lock() -> None:
            if rank_and_world_size()[0] == 0:
                stack.enter_context(_hold_run_lock(context.results, f"runs/{run.key}/lock"))

        run_on_all_ranks(acquire_lock)
        return _execute_locked(run, context, report, get_stop_reason)


def _execute_locked(
    run: Run, context: WorkerContext, report: Callable[[Progress], None], get_stop_reason: Callable[[], str]
) -> str:
    latest, damaged = run_on_all_ranks(lambda: ckpt.find_latest_checkpoint(context.results, run.key))
    if latest and latest[1].finished and is_embedded(run, context.results):
        return latest[0]
    prepared = run_on_all_ranks(lambda: prepare_run(run, context, fresh=latest is None))
    if latest:
        module_state = prepared.module.state_dict()  # a checkpoint also holds encoders that the run does not train
        prepared.module.load_state_dict({n: t for n, t in latest[1].weights.items() if n in module_state})
    if latest and latest[1].finished:
        prefix = latest[0]
        prepared.module.to(context.device)
    else:
        prefix = _train(run, context, prepared, latest[1] if latest else None, damaged, report, get_stop_reason)
    if run.kind == "encoder":
        _write_embeddings(run, context, prepared)
    return prefix


@contextlib.contextmanager
def _hold_run_lock(results: Store, name: str) -> Iterator[None]:
    """Two jobs must not write one run. Workers of a group that has just died may hold the lock for some seconds yet."""
    for seconds_left in range(LOCK_TIMEOUT_S, -1, -1):
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(results.lock(name))
            except DataError:
                if not seconds_left:
                    raise
            else:
                yield
                return
        time.sleep(1)


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
            collected.append(predict_validation(run, context, prepared, engine))

    fit_phases(run, context, prepared, None, collect_predictions)
    (table,) = collected
    return table


def fit_phases(
    run: Run,
    context: WorkerContext,
    prepared: PreparedRun,
    resume: ckpt.Checkpoint | None,
    on_epoch_end: Callable[[Engine, Position, Metrics], None],
    on_step_end: Callable[[Engine, Position, Metrics], None] = lambda engine, position, sums: None,
) -> None:
    """Train from where `resume` stopped, whose weights the module already holds, to the last epoch."""
    e, loader = run.experiment, build_batch_loader(run, context, prepared)
    # Sums of an epoch that was left in its middle are those of all ranks.
    partial_sums = resume.metrics.get("partial_sums") if resume and rank_and_world_size()[0] == 0 else None
    start = resume.position if resume else Position(0, 0)
    for phase in run.phases:
        if start >= Position(phase.end_epoch, 0):
            continue
        # At the border of two phases lie the moments of the one before, which had other parameters.
        mid_phase = resume is not None and start > Position(phase.first_epoch, 0)
        if isinstance(prepared.module, Classifier):
            prepared.module.freeze_encoders(phase.encoders_frozen)
        optimizer_state = resume.optimizer_state if resume and mid_phase else None
        engine = make_engine(prepared.module, phase.optim, e.runtime, device=context.device, resume=optimizer_state)
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


def predict_validation(run: Run, context: WorkerContext, prepared: PreparedRun, engine: Engine) -> pd.DataFrame:
    """Predict the validation windows that have a modality of the run."""
    rows = select_rows_with_modality(context.windows, run.split.validation, tuple(run.experiment.data.modalities))
    if not len(rows):
        return build_empty_predictions(prepared.source.names, prepared.shapes.n_outputs)
    return predict_rows(engine, prepared.source, prepared.labels, rows, context.windows, run.optim.batch)


def compute_validation_metrics(table: pd.DataFrame) -> Metrics:
    """Compute the scores of validation predictions; empty without any window."""
    return {f"validation_{k}": v for k, v in compute_scores(table).items()} if len(table) else {}


def _collect_collapse_findings(
    run: Run, context: WorkerContext, prepared: PreparedRun, weights: dict[str, Tensor]
) -> list[dict[str, Any]]:
    """Findings about a trained fusion, on a module of their own: an engine's gradients belong to all ranks."""
    if len(run.experiment.data.modalities) < 2 or rank_and_world_size()[0]:  # rank 0 saves
        return []
    rows = select_rows_with_modality(
        context.windows, run.split.validation or run.split.train, tuple(run.experiment.data.modalities)
    )
    module, _ = build_module(run, context, prepared.source)
    module.load_state_dict(weights)
    sampled_rows = subsample_evenly(rows, MAX_COLLAPSE_WINDOWS)
    batches = (
        batch for _, batch in make_inference_batches(prepared.source, prepared.labels, sampled_rows, run.optim.batch)
    )
    return [asdict(f) for f in find_modality_collapse(module, batches, context.device)]


def _train(
    run: Run,
    context: WorkerContext,
    prepared: PreparedRun,
    resume: ckpt.Checkpoint | None,
    damaged: list[str],
    report: Callable[[Progress], None],
    get_stop_reason: Callable[[], str],
) -> str:
    """Fit, saving on the way; returns the prefix of the finished checkpoint."""
    e, epochs = run.experiment, run.epochs
    frozen_tensors = prepared.module.frozen_tensors if isinstance(prepared.module, HeadClassifier) else None
    writer = CheckpointWriter(run, context.results, context.windows.index, prepared.shapes, frozen_tensors)
    with contextlib.closing(writer):
        if not any(p.requires_grad for p in prepared.module.parameters()):  # late_mean has nothing to train
            weights = prepared.module.state_dict()
            untrained_findings = run_on_all_ranks(lambda: _collect_collapse_findings(run, context, prepared, weights))
            return writer.finish(weights, Position(epochs, 0), {"modality_collapse": untrained_findings})
        prefix = ""
        history: list[Metrics] = list(resume.metrics.get("history", [])) if resume else []  # of finished epochs
        steps_per_epoch = build_batch_loader(run, context, prepared).steps_per_epoch
        policy = CheckpointPolicy(run, steps_per_epoch, writer, get_stop_reason)

        def report_progress(engine: Engine, position: Position, sums: Metrics, validation: Metrics) -> None:
            if engine.rank == 0:
                seconds = max(1e-9, sums["seconds"])
                metrics = {
                    "train_loss": sums["loss_sum"] / max(1, sums["count"]),
                    "windows_per_s": sums["count"] / seconds,
                    "data_wait_fraction": sums["wait_s"] / seconds,
                    "checkpoint_pause_s": writer.pause_s,
                }
                epochs_done = position.epoch + position.step / steps_per_epoch
                step = position.epoch * steps_per_epoch + position.step
                report(Progress(run.key, run.title, epochs_done, epochs, step, metrics | validation, tuple(damaged)))

        def on_step_end(engine: Engine, position: Position, sums: Metrics) -> None:
            should_save, should_report, reason = policy.decide_after_step(position, engine)
            if should_save:
                engine.sync_buffers()
                writer.save(engine, position, {"partial_sums": _sum_over_ranks(sums), "history": list(history)})
            if (
                should_report and position.step < steps_per_epoch
            ):  # the last step of an epoch is reported with the epoch
                report_progress(engine, position, sums, {})
            if reason:
                raise TrainingInterrupted(reason)

        def on_epoch_end(engine: Engine, position: Position, sums: Metrics) -> None:
            nonlocal prefix
            engine.sync_buffers()
            sums = _sum_over_ranks(sums)
            metrics: Metrics = {"train_loss": sums["loss_sum"] / max(1, sums["count"])}
            is_last = position.epoch == epochs
            # What an encoder is worth that a fusion follows is measured where the fusion is.
            every = e.train.validate_epochs
            validation: Metrics = {}
            if (run.kind != "encoder" or not run.embedded_recordings) and (
                is_last or (every and position.epoch % every == 0)
            ):
                validation = compute_validation_metrics(predict_validation(run, context, prepared, engine))
            epoch_record = {"epoch": position.epoch, "seconds": sums["seconds"], "windows": sums["count"]}
            history.append(epoch_record | metrics | validation)
            saved_metrics: dict[str, Any] = metrics | validation | {"history": list(history)}
            if is_last:
                weights = engine.gather_weights()
                findings = run_on_all_ranks(lambda: _collect_collapse_findings(run, context, prepared, weights))
                prefix = writer.finish(weights, position, saved_metrics | {"modality_collapse": findings})
            elif validation or position.epoch % e.train.checkpoint_epochs == 0:
                writer.save(engine, position, saved_metrics)
            report_progress(engine, position, sums, validation)

        fit_phases(run, context, prepared, resume, on_epoch_end, on_step_end)
        return prefix


def _sum_over_ranks(sums: Metrics) -> Metrics:
    """Over all ranks; seconds are those of the slowest."""
    each = gather_from_all_ranks(sums)
    return {k: (max if k in ("seconds", "wait_s") else sum)(s[k] for s in each) for k in sums}


def _write_embeddings(run: Run, context: WorkerContext, prepared: PreparedRun) -> None:
    """Embeddings of all wanted recordings, each rank its share."""
    key = build_embedding_key(run.key, run.embedded_recordings)
    if not run.embedded_recordings or broadcast_object(context.results.is_committed(key)):
        return
    rank, size = rank_and_world_size()

    source = run_on_all_ranks(lambda: open_features(run, context)) if run.features_prefix else prepared.source

    def write_own_part() -> None:
        assert isinstance(prepared.module, Classifier | HeadClassifier)
        rows = context.windows.find_rows(run.embedded_recordings)[rank::size]
        batches = make_inference_batches(source, prepared.labels, rows, 64)
        precision = run.experiment.runtime.precision
        table = (
            compute_embeddings(prepared.module, batches, context.windows, context.device, precision=precision)
            if len(rows)
            else None
        )
        write_embedding_part(context.results, key, rank, table)

    run_on_all_ranks(write_own_part)
    if isinstance(source, EmbeddingSource):
        (times_s,) = source.times_s.values()
    else:
        assert isinstance(prepared.module, Classifier)
        times_s = get_token_times(prepared.module)
    run_on_all_ranks(lambda: commit_embeddings(context.results, key, times_s) if rank == 0 else None)

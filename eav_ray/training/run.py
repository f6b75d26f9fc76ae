"""One training from start to committed checkpoint, on one rank of a group. Knows nothing of Ray."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from eav_ray.config import Experiment
from eav_ray.data.cache import WindowCache
from eav_ray.data.shard import ShardIndex
from eav_ray.data.split import check_disjoint, list_labeled_recordings
from eav_ray.errors import DataError, TrainingInterrupted
from eav_ray.models.build import (
    Classifier,
    ClassifierOutput,
    DataShapes,
    FusionClassifier,
    HeadClassifier,
    build_fusion,
)
from eav_ray.models.encoder import Encoder
from eav_ray.models.weights import load_pretrained
from eav_ray.storage import COMMIT, Store, sha256, split_store_path
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.collapse import find_modality_collapse
from eav_ray.training.embeddings import (
    FEATURE_ARRAYS,
    EmbeddingSource,
    build_embedding_key,
    commit_embeddings,
    compute_embeddings,
    write_embedding_part,
)
from eav_ray.training.engine import make_engine
from eav_ray.training.loop import Batch, Engine, Metrics, Position, fit, make_lr_schedule
from eav_ray.training.metrics import compute_scores
from eav_ray.training.plan import Progress, Run
from eav_ray.training.ranks import broadcast_object, gather_from_all_ranks, rank_and_world_size, run_on_all_ranks
from eav_ray.training.saving import CheckpointPolicy, CheckpointWriter
from eav_ray.training.source import BatchLoader, RawSource, Source, WindowLabels, make_inference_batches, prefetch

MAX_COLLAPSE_WINDOWS = 512  # that the collapse check looks at, evenly taken
MAX_STATISTICS_WINDOWS = 2048  # that the statistics of computed features are taken of
LOCK_TIMEOUT_S = 30  # seconds to wait for the lock of a run


@dataclass(frozen=True)
class WorkerContext:
    """What a process has at hand for any run."""

    windows: WindowCache
    results: Store
    device: torch.device


def open_worker_context(
    experiment: Experiment,
    shards: Store,
    index: ShardIndex,
    device: torch.device,
    *,
    allowed_recordings: tuple[str, ...],
) -> WorkerContext:
    store = experiment.store
    windows = WindowCache(
        shards, index, cache=store.cache, cache_gb=store.cache_gb, allowed_recordings=allowed_recordings
    )
    return WorkerContext(windows, Store(experiment.store.results), device)


@dataclass(frozen=True)
class PreparedRun:
    """What a run trains, and on what."""

    source: Source
    labels: WindowLabels
    module: nn.Module
    shapes: DataShapes


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
        interrupted: Why the training should save and leave, empty if it should not; asked every few seconds, by every
            rank together.
    Returns:
        The prefix of the finished checkpoint in `place.results`.
    Raises:
        Interrupted: It was asked to leave, and saved.
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
    return _compute_validation_metrics(train_and_predict_split(run, context))


def train_and_predict_split(run: Run, context: WorkerContext) -> pd.DataFrame:
    """Train on the training rows of a split; predictions of its validation rows (see `to_frame`). Nothing is kept."""
    check_disjoint(run.split)
    prepared = prepare_run(run, context, fresh=True)
    collected: list[pd.DataFrame] = []

    def collect_predictions(engine: Engine, position: Position, sums: Metrics) -> None:
        engine.sync_buffers()
        if position.epoch == run.epochs:
            collected.append(_predict_validation(run, context, prepared, engine))

    _fit_phases(run, context, prepared, None, collect_predictions)
    (table,) = collected
    return table


def prepare_run(
    run: Run, context: WorkerContext, *, fresh: bool, source: Source | None = None, labels: WindowLabels | None = None
) -> PreparedRun:
    """
    Args:
        fresh: Start from published weights, where the experiment names some; otherwise a checkpoint follows.
        source, labels: Those of the run, where they are at hand.
    """
    source, labels = source or open_source(run, context), labels or build_labels(run, context)
    torch.manual_seed(run.experiment.seed)
    module, shapes = build_module(run, context, source)
    if fresh and not run.init_from:
        _fit_module_statistics(module, run, context)
    if fresh and run.init_from:
        module.load_state_dict(_load_initial_weights(run, context))
    elif fresh and isinstance(module, Classifier):
        load_pretrained_encoders(module, run.experiment)
    return PreparedRun(source, labels, module, shapes)


def build_labels(run: Run, context: WorkerContext) -> WindowLabels:
    items = list_labeled_recordings(context.windows.ids, run.experiment.data, run.experiment.seed)
    return WindowLabels.from_windows(context.windows, {i.id: i.label for i in items})


def _load_initial_weights(run: Run, context: WorkerContext) -> dict[str, Tensor]:
    if run.init_commit_hash:
        store, name = split_store_path(run.init_from)
        if sha256(store.read(f"{name}/{COMMIT}")) != run.init_commit_hash:
            raise DataError(f"{run.init_from} has changed since this run was planned; give the command again")
        return ckpt.read_checkpoint(store, name).weights
    staged, _ = ckpt.find_latest_checkpoint(context.results, run.init_from)
    if staged is None:
        raise DataError(f"the fusion run {run.init_from} has no checkpoint; train it first")
    return staged[1].weights


def _fit_phases(
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
    partial_sums = resume.metrics.get("so_far") if resume and rank_and_world_size()[0] == 0 else None
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


def build_batch_loader(run: Run, context: WorkerContext, prepared: PreparedRun) -> BatchLoader:
    e, optim = run.experiment, run.optim
    names = tuple(e.data.modalities)
    rows = select_rows_with_modality(context.windows, run.split.train, names)
    if not len(rows):
        raise DataError(
            f"no training row has {' or '.join(names)}; take it out of data.modalities, or use another fold"
        )
    dropout = e.fusion.modality_dropout if len(names) > 1 else 0.0
    weight = (
        compute_class_weights(prepared.labels.label[rows], prepared.shapes.n_outputs) if optim.class_weights else None
    )
    return BatchLoader(
        prepared.source, prepared.labels, rows, e.seed, optim.batch, dropout, *rank_and_world_size(), weight
    )


def compute_class_weights(labels: np.ndarray, n_outputs: int) -> np.ndarray:
    """(classes,) inversely proportional to their number, 1 in the mean over the rows."""
    counts = np.bincount(labels, minlength=n_outputs)
    present = counts > 0
    return np.where(present, len(labels) / (present.sum() * np.maximum(counts, 1)), 0.0).astype(np.float32)


def _predict_validation(run: Run, context: WorkerContext, prepared: PreparedRun, engine: Engine) -> pd.DataFrame:
    rows = select_rows_with_modality(context.windows, run.split.validation, tuple(run.experiment.data.modalities))
    if not len(rows):
        return build_empty_predictions(prepared.source.names, prepared.shapes.n_outputs)
    return predict_rows(engine, prepared.source, prepared.labels, rows, context.windows, run.optim.batch)


def _compute_validation_metrics(table: pd.DataFrame) -> Metrics:
    return {f"validation_{k}": v for k, v in compute_scores(table).items()} if len(table) else {}


def open_source(run: Run, context: WorkerContext) -> Source:
    if run.features_prefix:
        return open_features(run, context, pooled=True)
    if run.kind != "fusion":
        return RawSource(context.windows, list(run.experiment.data.modalities))
    keys = {m: build_embedding_key(key, run.embedded_recordings) for m, key in run.encoder_keys.items()}
    return EmbeddingSource(context.results, keys, context.windows, pooled=run.experiment.fusion.uses_pooled_features)


def open_features(run: Run, context: WorkerContext, *, pooled: bool = False) -> EmbeddingSource:
    (m,) = run.experiment.data.modalities
    return EmbeddingSource(
        context.results, {m: run.features_prefix}, context.windows, pooled=pooled, arrays=FEATURE_ARRAYS
    )


def _fit_module_statistics(module: nn.Module, run: Run, context: WorkerContext) -> None:
    if isinstance(module, Classifier):
        fit_model_statistics(module, context.windows, run.split.train)


def fit_model_statistics(model: Classifier, windows: WindowCache, recordings: tuple[str, ...]) -> None:
    """Fit the normalisation of EEG, and of what encoders compute, on training rows; it is a part of the weights."""
    if "eeg" in model.modalities:
        mean, sd = compute_channel_statistics(windows, select_rows_with_modality(windows, recordings, ("eeg",)))
        model.normalise.mean.copy_(mean)
        model.normalise.sd.copy_(sd)
    for m in model.modalities:
        encoder = model.encoders[m]
        assert isinstance(encoder, Encoder)
        rows = subsample_evenly(select_rows_with_modality(windows, recordings, (m,)), MAX_STATISTICS_WINDOWS)
        parts = (rows[start : start + 64] for start in range(0, len(rows), 64))
        # Only those that need them read them.
        encoder.fit_statistics(model.prepare_input(m, torch.from_numpy(windows.get(part, m))) for part in parts)


def subsample_evenly(rows: np.ndarray, max_rows: int) -> np.ndarray:
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), max_rows)).astype(int)]


def build_module(
    run: Run, context: WorkerContext, source: Source
) -> tuple[Classifier | HeadClassifier | FusionClassifier, DataShapes]:
    """A module with fresh weights."""
    index = context.windows.index
    shapes = DataShapes(index.eeg_channels, len(index.classes))
    if run.features_prefix:
        classifier = Classifier(run.experiment, shapes)
        load_pretrained_encoders(classifier, run.experiment)
        return HeadClassifier(classifier), shapes
    if isinstance(source, EmbeddingSource):
        fusion = build_fusion(run.experiment, source.widths, source.times_s, shapes.n_outputs)
        return FusionClassifier(fusion, source.names), shapes
    return Classifier(run.experiment, shapes), shapes


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


def load_pretrained_encoders(module: Classifier, experiment: Experiment) -> None:
    """Raises ConfigError where the weights that the experiment names are not there or do not fit."""
    for m in module.modalities:
        weights = getattr(getattr(experiment.model, m), "weights", "")
        if weights:
            encoder = module.encoders[m]
            assert isinstance(encoder, Encoder)
            load_pretrained(encoder, weights)


def select_rows_with_modality(
    windows: WindowCache, recordings: tuple[str, ...], modalities: tuple[str, ...]
) -> np.ndarray:
    """Rows of these recordings in which at least one of the modalities exists."""
    rows = windows.find_rows(recordings)
    return rows[windows.ids[[f"has_{m}" for m in modalities]].to_numpy()[rows].any(1)]


def compute_channel_statistics(windows: WindowCache, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and SD of each EEG channel over training rows: ((channels,), (channels,)), microvolts."""
    total, squares, count = 0.0, 0.0, 0
    for start in range(0, len(rows), 128):
        x_BCT = windows.get(rows[start : start + 128], "eeg").astype(np.float64)
        total = total + x_BCT.sum((0, 2))
        squares = squares + np.square(x_BCT).sum((0, 2))
        count += x_BCT.shape[0] * x_BCT.shape[2]
    if not count:
        raise DataError("no training row has EEG; take eeg out of data.modalities")
    mean = total / count
    sd = np.sqrt(np.maximum(squares / count - np.square(mean), 0))
    # A channel that is masked in every training row has no spread; dividing by 1 leaves it at zero.
    return torch.as_tensor(mean), torch.as_tensor(np.where(sd > 0, sd, 1.0))


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
            return writer.finish(weights, Position(epochs, 0), {"collapse": untrained_findings})
        prefix = ""
        history: list[Metrics] = list(resume.metrics.get("history", [])) if resume else []  # of finished epochs
        steps_per_epoch = build_batch_loader(run, context, prepared).steps_per_epoch
        policy = CheckpointPolicy(run, steps_per_epoch, writer, get_stop_reason)

        def report_progress(engine: Engine, position: Position, sums: Metrics, validation: Metrics) -> None:
            if engine.rank == 0:
                seconds = max(1e-9, sums["seconds"])
                metrics = {
                    "train_loss": sums["loss_sum"] / max(1, sums["count"]),
                    "windows_s": sums["count"] / seconds,
                    "wait": sums["wait_s"] / seconds,
                    "pause_s": writer.pause_s,
                }
                epochs_done = position.epoch + position.step / steps_per_epoch
                step = position.epoch * steps_per_epoch + position.step
                report(Progress(run.key, run.title, epochs_done, epochs, step, metrics | validation, tuple(damaged)))

        def on_step_end(engine: Engine, position: Position, sums: Metrics) -> None:
            should_save, should_report, reason = policy.decide_after_step(position, engine)
            if should_save:
                engine.sync_buffers()
                writer.save(engine, position, {"so_far": _sum_over_ranks(sums), "history": list(history)})
            if should_report and position.step < steps_per_epoch:  # the last step of an epoch is told with the epoch
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
                validation = _compute_validation_metrics(_predict_validation(run, context, prepared, engine))
            epoch_record = {"epoch": position.epoch, "seconds": sums["seconds"], "windows": sums["count"]}
            history.append(epoch_record | metrics | validation)
            saved_metrics: dict[str, Any] = metrics | validation | {"history": list(history)}
            if is_last:
                weights = engine.gather_weights()
                findings = run_on_all_ranks(lambda: _collect_collapse_findings(run, context, prepared, weights))
                prefix = writer.finish(weights, position, saved_metrics | {"collapse": findings})
            elif validation or position.epoch % e.train.checkpoint_epochs == 0:
                writer.save(engine, position, saved_metrics)
            report_progress(engine, position, sums, validation)

        _fit_phases(run, context, prepared, resume, on_epoch_end, on_step_end)
        return prefix


def _sum_over_ranks(sums: Metrics) -> Metrics:
    """Over all ranks; seconds are those of the slowest."""
    each = gather_from_all_ranks(sums)
    return {k: (max if k in ("seconds", "wait_s") else sum)(s[k] for s in each) for k in sums}


def is_embedded(run: Run, results: Store) -> bool:
    """Whether there are the embeddings that are wanted of a run."""
    return (
        run.kind != "encoder"
        or not run.embedded_recordings
        or results.is_committed(build_embedding_key(run.key, run.embedded_recordings))
    )


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


def get_token_times(model: Classifier) -> Tensor:
    """(N,) seconds: where the tokens of its only encoder lie on the window's clock."""
    (name,) = model.modalities
    times_s = model.encoders[name].times_s
    assert isinstance(times_s, Tensor)
    return times_s


def predict_rows(
    engine: Engine, source: Source, labels: WindowLabels, rows: np.ndarray, windows: WindowCache, batch_size: int
) -> pd.DataFrame:
    """Predictions of all rows, on every rank: each computes its share, every row once, whatever their number."""
    own_rows = rows[engine.rank :: engine.world_size]
    # Equally many forward passes on every rank: in ZeRO 3 each of them gathers parameters from all.
    n_missing = -(-len(rows) // engine.world_size) - len(own_rows)
    padded = np.concatenate([own_rows, rows[:n_missing]])
    own = (
        [compute_predictions(engine.predict, source, labels, padded, windows, batch_size).iloc[: len(own_rows)]]
        if len(padded)
        else []
    )
    whole = [frame for frames in gather_from_all_ranks(own) for frame in frames]
    return pd.concat(whole, ignore_index=True).sort_values(["subject", "recording", "window"], ignore_index=True)


def compute_predictions(
    predict: Callable[[Batch], ClassifierOutput],
    source: Source,
    labels: WindowLabels,
    rows: np.ndarray,
    windows: WindowCache,
    batch_size: int,
) -> pd.DataFrame:
    """`to_frame` of some rows, at least one, in their order.

    Args:
        batch: Windows that are computed at once.
    """
    parts = []
    for part, model_batch in make_inference_batches(source, labels, rows, batch_size):
        ids, present = windows.ids.iloc[part], source.get_presence(part)
        parts.append(build_predictions(predict(model_batch), ids, present, source.names, labels.label[part]))
    return pd.concat(parts, ignore_index=True)


def build_predictions(
    output: ClassifierOutput, ids: pd.DataFrame, present_BM: np.ndarray, names: list[str], label: np.ndarray
) -> pd.DataFrame:
    """One row a window: ids, label, logits of the fusion, of `late_mean` and of each modality, modality weights.

    A modality that a window lacks has NaN logits.
    """
    columns: dict[str, np.ndarray] = {c: ids[c].to_numpy() for c in ("subject", "recording", "window")}
    columns["label"] = label
    unimodal = {}
    for position, m in enumerate(names):
        logits = output.unimodal_logits[m].float().cpu().numpy()
        unimodal[m] = np.where(present_BM[:, position, None], logits, np.nan)
    stacked = np.stack([unimodal[m] for m in names])
    sources = {"fusion": output.logits_BK.float().cpu().numpy(), "late_mean": np.nanmean(stacked, 0)} | unimodal
    for source, logits in sources.items():
        columns |= {f"{source}.logit_{k}": logits[:, k] for k in range(logits.shape[1])}
    for position, m in enumerate(names):
        columns[f"weight.{m}"] = output.weights_BM[:, position].float().cpu().numpy()
        columns[f"corrected.{m}"] = output.corrected_BM[:, position].float().cpu().numpy()
    return pd.DataFrame(columns)


def build_empty_predictions(names: list[str], n_outputs: int) -> pd.DataFrame:
    """`to_frame` of no windows: the same columns."""
    none = torch.zeros(0, n_outputs)
    weights = torch.zeros(0, len(names))
    ids = pd.DataFrame({"subject": [], "recording": [], "window": []})
    return build_predictions(
        ClassifierOutput(none, {m: none for m in names}, weights, weights), ids, weights.numpy(), names, np.zeros(0)
    )

"""Checkpoints in a store: the one place that writes them, finds them and reads them.

A run's folder is `runs/<key>/<attempt>/e<epoch>-s<step>/`. What has no valid COMMIT does not exist. An attempt is named
`a<number>-<random>`: two processes that start at once on a store without locks do not share a name.
"""

import contextlib
import re
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from eav_ray.config import Experiment
from eav_ray.data.splits import Split
from eav_ray.errors import DataError, StorageError
from eav_ray.models.classifier import Classifier
from eav_ray.storage import COMMIT, Commit, Store, split_store_path
from eav_ray.training import checkpoint_files as files
from eav_ray.training.checkpoint_files import Checkpoint, CheckpointState
from eav_ray.training.positions import CHECKPOINT_NAME, MAX_REQUESTS, make_checkpoint_prefix
from eav_ray.training.run_spec import SELECTION_METRIC, Position

ATTEMPT_NAME = re.compile(r"a\d+-[0-9a-f]+")


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A checkpoint in a store, whose files are read when they are asked for, each against its hash in `COMMIT`.

    To make one reads nothing. Tensors are read anew each time, so that an opened checkpoint holds none; everything else
    is read once.

    Raises:
        DataError: From each attribute: the checkpoint was never committed, or the file is missing, damaged or not ours.
    """

    store: Store
    prefix: str  # its folder in the store

    @property
    def path(self) -> str:
        return self.store.format_path(self.prefix)

    @cached_property
    def commit(self) -> Commit:
        return self.store.read_commit(self.prefix)

    @property
    def commit_sha256(self) -> str:
        """The hash of `COMMIT`, and so of all files: the checkpoint's identity."""
        return self.commit.sha256

    @cached_property
    def state(self) -> CheckpointState:
        return files.parse_state(self._read(files.STATE), self.path)

    @property
    def key(self) -> str:
        """The key of its run."""
        return self.state.key

    @cached_property
    def experiment(self) -> Experiment:
        return files.parse_experiment(self._read(files.EXPERIMENT), self.path)

    @cached_property
    def split(self) -> Split:
        return files.parse_split(self._read(files.SPLIT), self.path)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        return files.parse_metrics(self._read(files.METRICS), self.path)

    @property
    def weights(self) -> dict[str, Tensor]:
        return files.parse_tensors(self._read(files.WEIGHTS), self.path)

    @property
    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimizer's state by name; empty once the checkpoint is finished."""
        if files.OPTIMIZER_STATE not in self.commit.files:
            return {}
        return files.parse_tensors(self._read(files.OPTIMIZER_STATE), self.path)

    def load(self) -> Checkpoint:
        """Read the whole checkpoint into memory."""
        return files.parse_checkpoint(self.read_files(), self.path)

    def read_files(self) -> dict[str, bytes]:
        """Read all of its files as they are."""
        return {name: self._read(name) for name in self.commit.files}

    def has_all_files(self, sizes: Mapping[str, int]) -> bool:
        """Whether every file is there and as long as `COMMIT` says; reads none but that.

        Args:
            sizes: Bytes of the files of the store, by name below `runs`.
        """
        place = self.prefix.removeprefix("runs/")
        return all(sizes.get(f"{place}/{name}") == file.size for name, file in self.commit.files.items())

    def _read(self, name: str) -> bytes:
        files.get_file(self.commit.files, name, self.path)
        return self.store.read_committed_file(self.prefix, name, self.commit)


def write_checkpoint(store: Store, attempt: str, checkpoint: Checkpoint) -> OpenedCheckpoint:
    """Write one checkpoint of a run's attempt, COMMIT last."""
    state = checkpoint.state
    prefix = make_checkpoint_prefix(state.key, attempt, state.position)
    store.commit(prefix, files.encode_checkpoint(checkpoint))
    return OpenedCheckpoint(store, prefix)


def open_checkpoint(path: str) -> OpenedCheckpoint:
    """Open a checkpoint by the path that a command printed: a folder, or `s3://.../runs/<key>/<attempt>/<position>`."""
    store, prefix = split_store_path(path)
    return OpenedCheckpoint(store, prefix)


def open_finished_checkpoint(path: str) -> OpenedCheckpoint:
    """Open a checkpoint that can predict, by the path that `pull` or `train` printed.

    Raises:
        DataError: There is none, its state is damaged, or it is not finished.
    """
    checkpoint = open_checkpoint(path)
    if not checkpoint.state.finished:
        raise DataError(f"{path} is from the middle of a training; the command that trained it continues it")
    return checkpoint


def build_trained_model(checkpoint: Checkpoint | OpenedCheckpoint) -> Classifier:
    """Build the whole model, on the CPU, in training mode.

    Raises:
        DataError: The tensors are not those of the experiment beside them.
    """
    model = Classifier(checkpoint.experiment, checkpoint.state.shapes)
    try:
        model.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        raise DataError(f"the weights do not fit the experiment beside them: {str(error).splitlines()[-1]}") from None
    return model


def list_checkpoints(store: Store, key: str) -> list[tuple[str, Position, OpenedCheckpoint]]:
    """List a run's committed checkpoints, the newest first, with their attempt and position.

    The latest attempt comes before all others, however far they are: one that was given up, and writes on because
    it does not know, cannot win.
    """
    return _sort_checkpoints(store, (name.removeprefix("runs/") for name in store.list_files(f"runs/{key}")))


def _sort_checkpoints(store: Store, names: Iterable[str]) -> list[tuple[str, Position, OpenedCheckpoint]]:
    """Sort those of one run, of whose files the names below `runs` are given."""
    found = []
    for name in names:
        if match := CHECKPOINT_NAME.search(name):
            attempt, epoch, step = match.groups()
            checkpoint = OpenedCheckpoint(store, f"runs/{name.removesuffix(f'/{COMMIT}')}")
            found.append((attempt, Position(int(epoch), int(step)), checkpoint))
    return sorted(found, key=lambda one: one[:2], reverse=True)


def find_finished_checkpoint(store: Store, key: str) -> OpenedCheckpoint | None:
    """Find the finished checkpoint of a run, as `find_finished_checkpoints`."""
    return find_finished_checkpoints(store, [key]).get(key)


def find_finished_checkpoints(store: Store, keys: Collection[str]) -> dict[str, OpenedCheckpoint]:
    """Find the finished checkpoint of each run that has one, by what it says of itself; reads no tensors.

    Many runs are found by one listing, and small files are read several at a time. A checkpoint that lacks a file, or a
    part of one, does not count, and neither does one whose state cannot be read. What else is damaged shows, and is
    said, when it is read.

    Raises:
        StorageError: The store does not answer, which says nothing of a checkpoint.
    """
    wanted, by_run = set(keys), dict[str, dict[str, int]]()
    with ThreadPoolExecutor(min(len(wanted), MAX_REQUESTS) or 1) as pool:
        places = ["runs"] if len(wanted) > MAX_REQUESTS else [f"runs/{key}" for key in wanted]
        for place, sizes in zip(places, pool.map(store.measure_files, places), strict=True):
            for name, size in sizes.items():
                name = f"{place}/{name}".removeprefix("runs/")
                if (key := name.split("/")[0]) in wanted:
                    by_run.setdefault(key, {})[name] = size
        found = pool.map(partial(_find_finished, store), by_run.values())
        return {key: checkpoint for key, checkpoint in zip(by_run, found, strict=True) if checkpoint}


def _find_finished(store: Store, sizes: Mapping[str, int]) -> OpenedCheckpoint | None:
    for _, _, checkpoint in _sort_checkpoints(store, sizes):
        with suppress_damage():
            # Python 3.11 lets one thread at a time compute a cached property, of all objects: they are put in.
            commit = store.read_commit(checkpoint.prefix)
            files.get_file(commit.files, files.STATE, checkpoint.path)
            data = store.read_committed_file(checkpoint.prefix, files.STATE, commit)
            vars(checkpoint).update(commit=commit, state=files.parse_state(data, checkpoint.path))
            if checkpoint.state.finished and checkpoint.has_all_files(sizes):
                return checkpoint
    return None


@contextlib.contextmanager
def suppress_damage() -> Iterator[None]:
    """Skip what is damaged; a store that does not answer is not a damaged checkpoint."""
    try:
        yield
    except StorageError:
        raise
    except DataError:
        pass


def load_latest_checkpoint(store: Store, key: str) -> tuple[tuple[str, Checkpoint] | None, list[str]]:
    """Load a run's newest whole checkpoint, after its prefix, with a line for each damaged one that was skipped.

    Raises:
        StorageError: The store does not answer: no older checkpoint is taken for it.
    """
    damaged = []
    for _, _, checkpoint in list_checkpoints(store, key):
        try:
            return (checkpoint.prefix, checkpoint.load()), damaged
        except StorageError:
            raise
        except DataError as error:
            damaged.append(str(error))
    return None, damaged


def load_trained(store: Store, key: str) -> Checkpoint:
    """Load the finished checkpoint of a run that another builds on.

    Raises:
        DataError: There is none.
    """
    latest, damaged = load_latest_checkpoint(store, key)
    if damaged and not (latest and latest[1].state.finished):
        raise DataError(
            f"{damaged[0]}; delete {store.format_path(f'runs/{key}')} and give the command again, which trains it again"
        )
    if latest is None or not latest[1].state.finished:
        raise DataError(f"the run {key} has no checkpoint; train it first")
    return latest[1]


def make_attempt_name(store: Store, key: str) -> str:
    """Make a name that sorts after those of all attempts that were made."""
    number = max((_parse_attempt_number(name) for name in _list_attempts(store, key)), default=-1) + 1
    return f"a{number:04d}-{uuid.uuid4().hex[:8]}"


def _list_attempts(store: Store, key: str) -> list[str]:
    return [name for name in store.list_folders(f"runs/{key}") if ATTEMPT_NAME.fullmatch(name)]


def _parse_attempt_number(attempt: str) -> int:
    return int(attempt[1:].split("-")[0])


def prune_checkpoints(store: Store, key: str, attempt: str, *, keep: int) -> None:
    """Delete what an attempt and those before it committed, but for the newest `keep`, and the best by validation.

    Of attempts before it that have nothing left, what they were writing when they died goes too.

    Args:
        attempt: Who asks. What later attempts committed is left alone.
    """
    own = [checkpoint for name, _, checkpoint in list_checkpoints(store, key) if name <= attempt]
    best = _find_best(own)
    obsolete = [checkpoint for checkpoint in own[keep:] if checkpoint != best]
    for checkpoint in obsolete:
        store.delete(checkpoint.prefix)
    attempts_left = {checkpoint.prefix.split("/")[2] for checkpoint in own if checkpoint not in obsolete}
    for name in _list_attempts(store, key):
        if _parse_attempt_number(name) < _parse_attempt_number(attempt) and name not in attempts_left:
            store.delete(f"runs/{key}/{name}")


def _find_best(checkpoints: list[OpenedCheckpoint]) -> OpenedCheckpoint | None:
    """The one with the best validation score, the newest of equals; None where none was validated."""
    best, best_score = None, float("-inf")
    for checkpoint in checkpoints:
        with suppress_damage():
            score = checkpoint.metrics.get(SELECTION_METRIC)
            if isinstance(score, float) and score > best_score:
                best, best_score = checkpoint, score
    return best

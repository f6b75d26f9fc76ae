"""Where batches come from, and in which order: functions of (seed, epoch, step), never of what a process drew."""

import contextlib
import math
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import Full, Queue
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from eav_ray.config import select_channel_modalities
from eav_ray.data.modalities.registry import get_modality
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.electrodes import match_channels
from eav_ray.training.run_spec import Position
from eav_ray.training.target_scale import TargetScale

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """One rank's part of a step. Rows of weight 0 only fill the batch up; they are computed but do not count.

    Other weights than 1 are those of classes; they are 1 in the mean over the training windows.
    """

    inputs: dict[str, Tensor]
    present_BM: Tensor  # bool; modalities in sorted order
    label_B: Tensor  # int64 classes; or (batch, targets) float32, standardised, where numbers are predicted
    weight_B: Tensor
    global_count: int  # windows of this step over all ranks
    seed: int  # of this step's dropout
    # By mixup, (B,) each: labels of the windows that were mixed in, their weights, and the share of the own window.
    mixup_targets: tuple[Tensor, Tensor, Tensor] | None = None


class Source(Protocol):
    """Model inputs by row number of `WindowCache`."""

    names: list[str]  # modalities, sorted

    def get(self, rows: np.ndarray) -> dict[str, Tensor]: ...

    def get_presence(self, rows: np.ndarray) -> np.ndarray:
        """(rows, modalities) bool."""
        ...


class RawSource:
    """Stored windows, from the memory-mapped cache.

    Args:
        missing_shapes: Modalities that are not read but missing in every window, with the shape of a window.
        channel_orders: Of modalities whose channels are not those of the windows, the index of each that is wanted.
    """

    def __init__(
        self,
        windows: WindowCache,
        names: Sequence[str],
        missing_shapes: Mapping[str, tuple[int, ...]] | None = None,
        channel_orders: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.names = sorted(names)
        self._windows, self._missing_shapes = windows, missing_shapes or {}
        self._channel_orders = channel_orders or {}
        never = np.zeros(len(windows), dtype=bool)
        has = [never if m in self._missing_shapes else windows.ids[f"has_{m}"].to_numpy() for m in self.names]
        self._present = np.stack(has, axis=1)

    def get(self, rows: np.ndarray) -> dict[str, Tensor]:
        return {m: self.get_modality(rows, m) for m in self.names}

    def get_modality(self, rows: np.ndarray, modality: str) -> Tensor:
        """Read one modality of windows."""
        if modality in self._missing_shapes:
            shape = (len(rows), *self._missing_shapes[modality])
            return torch.from_numpy(np.zeros(shape, get_modality(modality).dtype))
        values = self._windows.get(rows, modality)
        if modality in self._channel_orders:
            values = np.ascontiguousarray(values[:, self._channel_orders[modality]])
        return torch.from_numpy(values)

    def get_presence(self, rows: np.ndarray) -> np.ndarray:
        return self._present[rows]


def find_channel_orders(windows: WindowCache, names: Iterable[str], known: Sequence[str]) -> dict[str, np.ndarray]:
    """Find the channels that a model knows among those of the windows.

    Args:
        names: Modalities.
        known: Names of the model's channels, in order.
    Returns:
        The index of each, by modality; nothing where they are the windows' own or have no names.
    Raises:
        DataError: One is missing.
    """
    available = windows.index.eeg_channel_names
    if tuple(known) == available or not available or not known:
        return {}
    order = np.array(match_channels(available, known, str(windows)))
    return {m: order for m in select_channel_modalities(names)}


class MaskedSource:
    """A source of which only some modalities are seen; the others are as if they were missing in every window.

    Args:
        modalities: Those that are seen.
    """

    def __init__(self, source: Source, modalities: tuple[str, ...]) -> None:
        self.names = source.names
        self._source = source
        self._visible = np.array([m in modalities for m in self.names])

    def get(self, rows: np.ndarray) -> dict[str, Tensor]:
        return self._source.get(rows)

    def get_presence(self, rows: np.ndarray) -> np.ndarray:
        return self._source.get_presence(rows) & self._visible


def prefetch(batches: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The same, made by a thread while the last ones are used.

    Args:
        depth: How many wait at most.
    """
    ready_items: Queue[Any] = Queue(depth)
    stop, end = threading.Event(), object()

    def put(item: Any) -> None:
        while not stop.is_set():
            with contextlib.suppress(Full):
                return ready_items.put(item, timeout=0.1)

    def produce() -> None:
        try:
            for batch in batches:
                put((batch, None))
                if stop.is_set():
                    return
            put((end, None))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            put((end, error))

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while True:
            batch, error = ready_items.get()
            if error is not None:
                raise error
            if batch is end:
                return
            yield batch
    finally:
        stop.set()
        thread.join()


@dataclass(frozen=True)
class WindowLabels:
    """What the loop must know of every row of `WindowCache`, by row number."""

    label: np.ndarray  # int64; or (windows, targets) float64, in their units, where numbers are predicted
    window_hash: np.ndarray  # a number for each window, from its id alone: stable across shards and machines
    scale: TargetScale | None = None  # of these numbers, where a model is trained on them

    @classmethod
    def from_windows(
        cls,
        windows: WindowCache,
        by_recording: Mapping[str, int | tuple[float, ...]],
        scale: TargetScale | None = None,
    ) -> "WindowLabels":
        """Take what is true of each window's recording.

        Args:
            by_recording: Class, or targets, by the id of the recording; windows of others have -1, or NaN.
        """
        ids = windows.ids
        n_targets = len(windows.index.targets)
        if n_targets:
            unknown = (math.nan,) * n_targets
            values = [by_recording.get(i, unknown) for i in ids["id"]]
            label = np.array(values, np.float64).reshape(-1, n_targets)
        else:
            label = ids["id"].map(by_recording).fillna(-1).to_numpy().astype(np.int64)
        names = [f"{i}/{w}" for i, w in zip(ids["id"], ids["window"], strict=True)]
        return cls(label, np.array([zlib.crc32(n.encode()) for n in names], dtype=np.int64), scale)

    def get_tensor(self, rows: np.ndarray) -> Tensor:
        """Return what a model is trained to give out for these rows."""
        label = self.label[rows]
        return torch.from_numpy(self.scale.standardise(label) if self.scale else label)


@dataclass(frozen=True)
class BatchLoader:
    """Batches of one rank. The global batch of a step is the same whatever the number of ranks."""

    source: Source
    labels: WindowLabels
    rows: np.ndarray  # training rows, ascending
    seed: int
    batch_size: int
    modality_dropout: float
    rank: int
    world_size: int
    class_weight: np.ndarray | None = None  # by label

    @property
    def steps_per_epoch(self) -> int:
        return count_steps_per_epoch(len(self.rows), self.batch_size)

    def batches(self, position: Position) -> Iterator[Batch]:
        """This rank's batches from a position to the end of its epoch."""
        order = np.random.default_rng([self.seed, position.epoch]).permutation(self.rows)
        for step in range(position.step, self.steps_per_epoch):
            global_rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            seed = int(np.random.SeedSequence([self.seed, position.epoch, step]).generate_state(1)[0])
            yield self.make_batch(global_rows, position.epoch, seed)

    def make_batch(self, global_rows: np.ndarray, epoch: int, seed: int) -> Batch:
        own_rows = global_rows[self.rank :: self.world_size]
        # A ragged last batch may leave this rank fewer rows, or none: it steps all the same, on rows of weight 0.
        size = -(-len(global_rows) // self.world_size)
        weight = np.zeros(size, dtype=np.float32)
        weight[: len(own_rows)] = 1 if self.class_weight is None else self.class_weight[self.labels.label[own_rows]]
        rows = np.concatenate([own_rows, np.repeat(global_rows[:1], size - len(own_rows))])
        present = self.source.get_presence(rows)
        if self.modality_dropout:
            present = self._drop_modalities(present, self.labels.window_hash[rows], epoch)
        return Batch(
            self.source.get(rows),
            torch.from_numpy(present),
            self.labels.get_tensor(rows),
            torch.from_numpy(weight),
            len(global_rows),
            seed,
        )

    def _drop_modalities(self, present_BM: np.ndarray, samples: np.ndarray, epoch: int) -> np.ndarray:
        """Hide modalities at random, never all that a window has."""
        remaining_BM = present_BM.copy()
        for row, sample in enumerate(samples):
            rng = np.random.default_rng([self.seed, epoch, int(sample)])
            remaining = present_BM[row] & (rng.random(present_BM.shape[1]) >= self.modality_dropout)
            if not remaining.any():
                remaining[rng.choice(np.flatnonzero(present_BM[row]))] = True
            remaining_BM[row] = remaining
        return remaining_BM


def make_inference_batches(
    source: Source, labels: WindowLabels, rows: np.ndarray, batch_size: int
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Rows in order, for prediction: (row numbers, batch)."""
    for start in range(0, len(rows), batch_size):
        batch_rows = rows[start : start + batch_size]
        yield (
            batch_rows,
            Batch(
                source.get(batch_rows),
                torch.from_numpy(source.get_presence(batch_rows)),
                labels.get_tensor(batch_rows),
                torch.ones(len(batch_rows)),
                len(batch_rows),
                0,
            ),
        )


def count_steps_per_epoch(n_windows: int, batch_size: int) -> int:
    return math.ceil(n_windows / batch_size)


def subsample_evenly(rows: np.ndarray, max_rows: int) -> np.ndarray:
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), max_rows)).astype(int)]


def select_rows_with_modality(
    windows: WindowCache, recordings: tuple[str, ...], modalities: tuple[str, ...]
) -> np.ndarray:
    """Rows of these recordings in which at least one of the modalities exists."""
    rows = windows.find_rows(recordings)
    return rows[windows.ids[[f"has_{m}" for m in modalities]].to_numpy()[rows].any(1)]

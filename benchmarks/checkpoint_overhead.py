"""What a checkpoint costs a training: a pause while tensors are copied, and slower steps while they are written.

    python -m benchmarks.checkpoint_overhead [FOLDER] [checkpoints=6]

The program's own loop (`training.runner.execute_run`) in one process without Ray, on noise, with a checkpoint every few
steps: the demo's EEGformer in steps of 50 to 100 ms, and a ViT of the published size on one frame a window. FOLDER, a
temporary one if none is given, gets the checkpoints and says on which disk they are measured. ViT-B needs about 10 GB
of memory.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.common import Goal, finish_benchmark, format_spread, parse_arguments
from eav_ray.config import Experiment, load_experiment
from eav_ray.data.shards import index as shards_index
from eav_ray.data.shards import schema, tables
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import Split
from eav_ray.storage import Store, list_package_versions, sha256
from eav_ray.training import checkpoint, checkpoint_writer, prepared_run, runner
from eav_ray.training.checkpoint import write_checkpoint
from eav_ray.training.checkpoint_writer import CheckpointPolicy, CheckpointWriter
from eav_ray.training.collectives import run_on_all_ranks
from eav_ray.training.engines.base import Engine
from eav_ray.training.run_spec import Position, Run

CHECKPOINT_INTERVAL_S = 300.0  # between two checkpoints, for which the cost is told
MAX_LOST_PERCENT = (
    3.0  # % of the training time, as `benchmarks.train` allows for all that the program adds to a plain loop
)
WARM_UP = 3  # steps that are slower than the rest

EEG = {"data.modalities": ["eeg"], "train.encoders.eeg.batch": 8}
VIT = {"data.modalities": ["video"], "train.encoders.video.batch": 1, "preprocessing.video.codec": "raw"}
VIT |= {"model.video.width": 768, "model.video.depth": 12, "model.video.heads": 12, "model.video.frames": 1}
VIT |= {"model.video.image_size": 224, "preprocessing.video.size": 224, "preprocessing.window_s": 1}
MODELS = {"EEGformer of the demo": (EEG, 20), "ViT-B": (VIT, 8)}  # changes, steps from one checkpoint to the next


@dataclass
class TrainingTimes:
    """Times of one training, seconds by `time.monotonic`."""

    steps: list[tuple[float, float]] = field(default_factory=list)  # from, to
    writes: list[tuple[float, float]] = field(default_factory=list)
    copies: list[float] = field(default_factory=list)  # that the loop stood still for copying
    waits: list[float] = field(default_factory=list)  # and for the writing of the checkpoint before
    size: int = 0  # bytes of a checkpoint
    loop_resumed_s: float = field(default_factory=time.monotonic)  # when the loop was last left to itself

    def split_step_seconds(self) -> tuple[list[float], list[list[float]]]:
        """Of steps while nothing is written; of those beside each writing."""
        while_writing = [[b - a for a, b in self.steps if a < end and b > start] for start, end in self.writes]
        undisturbed = [
            b - a for a, b in self.steps[WARM_UP:] if all(b <= start or a >= end for start, end in self.writes)
        ]
        return undisturbed, while_writing


@contextmanager
def record_training() -> Iterator[TrainingTimes]:
    """All that is trained meanwhile is recorded."""
    record, waits = TrainingTimes(), []

    class RecordedPolicy(CheckpointPolicy):
        def decide_after_step(self, position: Position, engine: Engine) -> tuple[bool, bool, str]:
            record.steps.append((record.loop_resumed_s, time.monotonic()))
            due = super().decide_after_step(position, engine)
            record.loop_resumed_s = time.monotonic()
            return due

    class RecordedWriter(CheckpointWriter):
        def save(self, engine: Engine, position: Position, metrics: dict[str, Any]) -> None:
            super().save(engine, position, metrics)
            record.waits.append(waits.pop())
            record.copies.append(self.pause_s - record.waits[-1])
            record.loop_resumed_s = time.monotonic()

        def finish(self, *given: Any) -> str:
            prefix = super().finish(*given)
            record.waits.append(waits[0])  # the other is for the last checkpoint itself
            return prefix

    def wait_recorded(wait: Callable[[], None]) -> None:
        began = time.monotonic()
        run_on_all_ranks(wait)
        waits.append(time.monotonic() - began)

    def write_recorded(results: Store, key: str, attempt: str, written: checkpoint.Checkpoint) -> str:
        began = time.monotonic()
        prefix = write_checkpoint(results, key, attempt, written)
        if written.optimizer_state:  # the last checkpoint has none
            record.writes.append((began, time.monotonic()))
            record.size = sum(file.stat().st_size for file in Path(results.resolve_path(prefix)).iterdir())
        return prefix

    with (
        patch.object(runner, "CheckpointPolicy", RecordedPolicy),
        patch.object(runner, "CheckpointWriter", RecordedWriter),
        patch.object(checkpoint_writer, "run_on_all_ranks", wait_recorded),
        patch.object(checkpoint, "write_checkpoint", write_recorded),
    ):
        yield record


def make_noise_windows(folder: Path, e: Experiment, n: int) -> WindowCache:
    """`n` stored windows of the experiment's one modality."""
    rng = np.random.default_rng(0)
    (m,) = e.data.modalities
    p = e.preprocessing
    shape = (30, p.eeg.hz * p.window_s) if m == "eeg" else (p.video.fps * p.window_s, p.video.size, p.video.size, 3)
    rows = []
    for k in range(n):
        row = {"subject": "subject1", "recording": f"{k:04d}", "window": 0, "label": k % 5, "task": "", "order": k}
        row |= {f"has_{m}": True, f"{m}_seconds": float(p.window_s), "eeg_bad_channels": 0}
        row |= {"video_luma": 0.0, "video_repeated": 0.0, "video_faceless": 0.0}
        x = rng.integers(0, 256, shape, np.uint8) if m == "video" else rng.standard_normal(shape, np.float32)
        rows.append(row | {m: x})
    store = Store(folder / "shards")
    content = tables.encode_parquet(tables.build_window_table(rows, schema.make_schema(p, 30, (m,))))
    store.write("a.parquet", content)
    file = shards_index.ShardFile("a.parquet", sha256(content), n, "subject1")
    index = shards_index.ShardIndex("k", tuple("abcde"), (m,), 30, (file,), list_package_versions())
    store.write_json(shards_index.INDEX_FILE, asdict(index))
    return WindowCache(store, shards_index.read_index(store), cache=folder / "cache", cache_gb=1)


def train_once(folder: Path, engine: str, changes: dict[str, Any], every: int, checkpoints: int) -> TrainingTimes:
    """One epoch, which ends with steps beside which the last of the checkpoints is written."""
    (m,) = changes["data.modalities"]
    more = {f"train.encoders.{m}.epochs": 1, "train.checkpoint_steps": every, "train.checkpoint_minutes": 0.0}
    more |= {"runtime.engine": engine, "runtime.workers": 1}
    e = load_experiment("eav_ray/experiments/demo.yaml", changes | more)
    windows = make_noise_windows(folder, e, (every * (checkpoints + 1) - 1) * e.train.encoders[m].batch)
    run = Run("encoder", e, Split("within", tuple(sorted(set(windows.ids["id"]))), (), ()), "benchmark")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with record_training() as record:
        runner.execute_run(
            run, prepared_run.WorkerContext(windows, Store(folder / "results"), device), lambda progress: None
        )
    return record


def main() -> int:
    folder, words = parse_arguments(__doc__, ("checkpoints",))
    checkpoints = int(words.get("checkpoints", 6))
    torch.set_num_threads(1)  # as a worker of the default `runtime.cpus_per_worker`
    print(f"to do: 4 trainings with {checkpoints} checkpoints each; about {checkpoints} minutes on 2 cores", flush=True)
    table, goals = [], []
    for name, (changes, every) in MODELS.items():
        for engine in ("torch", "deepspeed"):
            record = train_once(folder / f"{engine}-{every}-{len(table)}", engine, changes, every, checkpoints)
            undisturbed, while_writing = record.split_step_seconds()
            undisturbed_s = median(undisturbed)
            extra_s = [sum(seconds) - len(seconds) * undisturbed_s for seconds in while_writing]
            lost_s = [copy + more for copy, more in zip(record.copies, extra_s, strict=True)]
            writes = [end - start for start, end in record.writes]
            table.append(
                f"| {name} | {engine} | {record.size / 1e6:,.1f} | {format_spread(1000 * np.array(undisturbed), 0)} | "
                f"{format_spread(1000 * np.array(record.copies), 0)} | {format_spread(writes)} | "
                f"{format_spread(extra_s)} | {max(record.waits):.2f} |"
            )
            print(table[-1], flush=True)
            share = 100 * median(lost_s) / CHECKPOINT_INTERVAL_S
            goals.append(
                Goal(f"{name}, {engine}: lost at a checkpoint every 5 minutes", share, MAX_LOST_PERCENT, " %", False)
            )
    device = "a GPU" if torch.cuda.is_available() else "the CPU"
    ago = " or ".join(str(steps) for steps in sorted({steps for _, steps in MODELS.values()}))
    lines = [
        f"Median (range) of {checkpoints} checkpoints of weights and AdamW's moments, fp32, one process with one "
        f"thread on {device}, to a local disk. The pause is what the loop stands still for copying; a thread then "
        "writes the copy, reads it back and hashes it. Slower: what steps beside a writing take longer than as many "
        f"others, in all. Waiting: for the writing of the checkpoint before, which here is only {ago} steps ago.",
        "",
        "| model | engine | checkpoint, MB | step, ms | pause, ms | writing, s | slower, s | longest waiting, s |",
        "|---|---|---|---|---|---|---|---|",
        *table,
        "",
        f"The goal is pause and slower steps together, over {CHECKPOINT_INTERVAL_S:.0f} s. {MAX_LOST_PERCENT:g} % is "
        "what `benchmarks.train` allows for all that the program adds to a plain loop.",
    ]
    return finish_benchmark("checkpoint_overhead", "What a checkpoint costs a training", "\n".join(lines), goals)


if __name__ == "__main__":
    sys.exit(main())

"""What a job costs its driver, its store and its nodes at 2,016 runs, 300 groups and 42 folds.

    python -m benchmarks.scale [FOLDER] [parts=embeddings,shards,trackers,search,store,queue,groups] [gib=1]

Runs and groups are faked, what drives them is not. embeddings: as many GiB as told, opened by two processes after each
other, against reading all files into memory as was done before they were mapped. shards: one data set, opened by eight
processes at once. trackers: 300 trainings of 5 epochs, against a writer of tensorboardX for each. search: what the
thread that Ray Tune calls does for a candidate of 42 folds leaving one of 42 people out, for 64 candidates. store: to
find 2,016 runs finished, of which each request takes 30 ms. queue: the actor of 2,016 runs, asked for a minute by 300
groups as often as real ones ask. groups: two real groups of a worker each, with the demo's models; what their processes
on the head keep in memory.
"""

import json
import math
import multiprocessing as mp
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from benchmarks.common import Goal, finish_benchmark, format_spread, parse_arguments
from eav_ray.config import Experiment, load_experiment, override
from eav_ray.data.shards.dataset import open_dataset
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import Split
from eav_ray.data.synthetic.generate import SyntheticSpec, generate_dataset
from eav_ray.distributed import cluster
from eav_ray.distributed.run_queue import END, HOLD_INTERVAL_S, WAIT, QueueActor
from eav_ray.models.encoders.base import DataShapes
from eav_ray.pipelines.preprocess.preprocess import preprocess
from eav_ray.pipelines.search.candidate_summary import summarize_candidate
from eav_ray.pipelines.search.search_plan import InnerCV, SearchPlan
from eav_ray.pipelines.search.trial_runner import TrainingSearcher
from eav_ray.storage import NodeCache, Store
from eav_ray.storage.backends import LocalBackend
from eav_ray.tracking.tensorboard import TensorBoardTracker
from eav_ray.training.checkpoint import write_checkpoint
from eav_ray.training.checkpoint_files import Checkpoint, CheckpointState
from eav_ray.training.checkpoint_writer import STOP_POLL_S
from eav_ray.training.embeddings import POINTER, build_embedding_key, commit_embeddings, write_embedding_part
from eav_ray.training.mapped_embeddings import open_embeddings
from eav_ray.training.run_spec import SELECTION_METRIC, Position, Progress, Run, plan_runs_of_splits
from eav_ray.training.runner import find_finished_runs
from eav_ray.tuning.study import StudyClient

FOLDS, SETTINGS = 42, 12  # of 4 runs each: 2,016
GROUPS, CANDIDATES, TRAININGS = 300, 64, 300
LATENCY_S = 0.03  # of a request to an object store of the same region
QUEUE_S = 60.0
DEMO = "eav_ray/experiments/demo.yaml"
Part = tuple[list[str], list[Goal]]


def run_in_process(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call returns in a fresh process."""
    with mp.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)


def measure_own_memory() -> int:
    """Bytes that this process shares with no other."""
    return int(psutil.Process().memory_full_info().uss)


class PeakMemory:
    """Bytes of one's own that a block takes at most, looked at a hundred times a second."""

    def __enter__(self) -> "PeakMemory":
        self._start, self._stop, self.peak = measure_own_memory(), threading.Event(), 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, measure_own_memory() - self._start)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


# Embeddings and shards on a node


def open_mapped(results: str, cache: str) -> tuple[float, float]:
    """Seconds and peak bytes of one's own."""
    store, node_cache = Store(results), NodeCache(cache, 100)
    with PeakMemory() as memory:
        began = time.perf_counter()
        open_embeddings(store, "e/a", node_cache)
        seconds = time.perf_counter() - began
    return seconds, memory.peak


def open_whole(results: str) -> tuple[float, float]:
    """As it was: all files, all tables, and all of them as one table."""
    store = Store(results)
    with PeakMemory() as memory:
        began = time.perf_counter()
        files = store.read_committed("e/a")
        tables = [pq.read_table(pa.BufferReader(files[name])) for name in sorted(files) if name.endswith(".parquet")]
        table = pa.concat_tables(tables).combine_chunks()
        [table.column(name).chunk(0).to_numpy_ndarray() for name in ("tokens", "pooled")]
        seconds = time.perf_counter() - began
    return seconds, memory.peak


def run_embeddings(folder: Path, gib: float) -> Part:
    store, rng = Store(folder / "embeddings"), np.random.default_rng(0)
    size, part = 0, 0
    while size < gib * 2**30:
        arrays = {"tokens": rng.standard_normal((256, 100, 768), np.float32)}
        arrays |= {"pooled": arrays["tokens"].mean(1), "mask": np.ones((256, 100), np.uint8)}
        tensors = {name: pa.FixedShapeTensorArray.from_numpy_ndarray(values) for name, values in arrays.items()}
        ids = {"subject": [f"p{part}"] * 256, "recording": ["0"] * 256, "window": list(range(256))}
        write_embedding_part(store, "e", "a", f"{part:04d}", pa.table(ids | tensors))
        size, part = size + sum(values.nbytes for values in arrays.values()), part + 1
    commit_embeddings(store, "e", "a", torch.zeros(100))
    cache = str(folder / "embeddings-cache")
    first, second = (run_in_process(open_mapped, store.root, cache) for _ in range(2))
    whole = run_in_process(open_whole, store.root)
    rows = {"read into memory, each rank": whole, "mapped, the rank that fetches": first, "mapped, each other": second}
    lines = [f"Embeddings of {size / 2**30:.2f} GiB in {part} files:", "", "| way | seconds | memory of its own |"]
    lines += [
        "|---|---|---|",
        *(f"| {n} | {s:.1f} | {m / size:.2f} times the size |" for n, (s, m) in rows.items()),
        "",
    ]
    return lines, [
        Goal("memory of a rank that maps embeddings", second[1] / size, 0.05, " times their size", False),
        Goal("memory of the rank that fetches them", first[1] / size, 0.25, " times their size", False),
    ]


def open_and_count(job: tuple[Any, str, str]) -> list[str]:
    """Names that a process reads of the shards' store."""
    data, cache, log = job
    names: list[str] = []
    read = Store.read
    Store.read = lambda store, name: (names.append(name), read(store, name))[1]  # pyright: ignore[reportAttributeAccessIssue]
    WindowCache(data.shards, data.index, cache=cache, cache_gb=10)
    return names


def prepare_demo(folder: Path) -> Experiment:
    """The demo's experiment on four people."""
    changes: dict[str, Any] = {f"store.{k}": str(folder / k) for k in ("shards", "results", "cache")}
    changes |= {"data.root": str(folder / "EAV"), "split.n_folds": 2, "runtime.workers": 1, "runtime.groups": 2}
    e = load_experiment(DEMO, changes)
    if not (folder / "EAV").exists():
        spec = SyntheticSpec(n_subjects=4, per_class=2, video_size=(64, 48), fps=5)
        generate_dataset(folder / "EAV", spec, workers=os.cpu_count() or 1)
        preprocess(e)
    return e


def run_shards(folder: Path) -> Part:
    data = open_dataset(prepare_demo(folder))
    with mp.get_context("spawn").Pool(8) as pool:
        jobs = [(data, str(folder / "shards-cache"), "")] * 8
        counts = Counter(name for names in pool.map(open_and_count, jobs, chunksize=1) for name in names)
    line = f"{len(counts)} shards, opened by 8 processes of a node at once: read {sum(counts.values())} times in all."
    return [line, ""], [Goal("reads of a shard by 8 processes of a node", max(counts.values()), 1, "", False)]


# The driver


def count_descriptors_and_threads() -> tuple[int, int]:
    process = psutil.Process()
    return process.num_fds(), process.num_threads()


def log_trainings(folder: str, writes_each: bool) -> tuple[int, int, float]:
    """Descriptors and threads more than before, and milliseconds an entry."""
    before = count_descriptors_and_threads()
    tracker, writers = TensorBoardTracker(Path(folder)), dict[str, Any]()
    began = time.perf_counter()
    for epoch in range(5):
        for number in range(TRAININGS):
            progress = Progress(f"run-{number}", "x", epoch + 1, 5, epoch, {f"metric_{k}": 0.5 for k in range(6)})
            if not writes_each:
                tracker.log(progress)
                continue
            from tensorboardX import SummaryWriter

            writer = writers.setdefault(progress.key, None) or SummaryWriter(f"{folder}/{progress.key}")
            writers[progress.key] = writer
            for name, value in progress.metrics.items():
                writer.add_scalar(name, value, epoch)
    milliseconds = 1000 * (time.perf_counter() - began) / (5 * TRAININGS)
    after = count_descriptors_and_threads()
    return after[0] - before[0], after[1] - before[1], milliseconds


def run_trackers(folder: Path) -> Part:
    each = run_in_process(log_trainings, str(folder / "curves-each"), True)
    now = run_in_process(log_trainings, str(folder / "curves"), False)
    rows = {"a writer of tensorboardX each": each, "the program's tracker": now}
    lines = [f"Curves of {TRAININGS} trainings:", "", "| way | descriptors more | threads more | ms an entry |"]
    lines += ["|---|---|---|---|", *(f"| {n} | {d} | {t} | {ms:.2f} |" for n, (d, t, ms) in rows.items()), ""]
    return lines, [
        Goal("descriptors of trackers", now[0], 10, "", False),
        Goal("threads of trackers", now[1], 5, "", False),
    ]


def make_splits() -> list[Split]:
    """Leaving each of 42 people out, of 100 recordings each."""
    ids = {k: tuple(f"subject{k}/{number:03d}" for number in range(100)) for k in range(FOLDS)}
    return [
        Split("loso", tuple(i for k, own in ids.items() if k != left for i in own), (), ids[left])
        for left in range(FOLDS)
    ]


def time_candidates(folder: Path, sampler: str) -> list[float]:
    """Milliseconds of the thread that Tune calls, of each candidate: its CPU time, as other work shares the cores."""
    e = load_experiment(
        "fusion",
        {"store.results": str(folder / f"search-{sampler}"), "search.sampler": sampler, "search.mode": "full"}
        | {"search.candidates": CANDIDATES, "search.ask_batch_size": 8, "search.prune": True}
        | {"search.space": {"optim.lr": {"low": 1e-4, "high": 1e-2}, "fusion.dropout": {"low": 0.0, "high": 0.5}}},
    )
    splits = make_splits()
    everyone = tuple(sorted({*splits[0].train, *splits[0].test}))
    plan = SearchPlan(e, splits[0], InnerCV(splits, "digest", everyone), [], [], "study")
    Path(e.store.results).mkdir(parents=True)
    study = StudyClient(e.search, "study", Path(e.store.results) / "journal.log")
    taken: list[float] = []
    with closing(TrainingSearcher(plan, study, [], lambda candidate: math.nan)) as searcher:
        for number in range(CANDIDATES):
            began = time.thread_time()
            (((found, changes),), *_) = searcher.suggest(f"t{number}").values()
            taken.append(time.thread_time() - began)
            score = 0.5 + 10 * changes["optim.lr"]
            folds = [{"fold": fold, "seconds": 1.0, "stack_size": 1, SELECTION_METRIC: score} for fold in range(FOLDS)]
            summaries = json.dumps([summarize_candidate(found, folds, FOLDS, {})])
            began = time.thread_time()
            searcher.on_trial_complete(f"t{number}", {"summaries": summaries})
            taken[-1] += time.thread_time() - began
    return [1000 * seconds for seconds in taken]


def run_search(folder: Path) -> Part:
    taken = {sampler: time_candidates(folder, sampler) for sampler in ("tpe", "cmaes")}
    lines = [
        f"The driver's thread in a search of {CANDIDATES} candidates, {FOLDS} folds of 4 runs each, batches of 8:",
        "",
    ]
    lines += ["| sampler | ms a candidate | ms of the last eight |", "|---|---|---|"]
    lines += [f"| {n} | {format_spread(t, 0)} | {format_spread(t[-8:], 0)} |" for n, t in taken.items()]
    worst = max(float(np.mean(t)) for t in taken.values())
    return [*lines, ""], [Goal("the driver's thread in a search", worst, 50, " ms a candidate", False)]


# The store and the queue


def plan_runs() -> list[Run]:
    base = load_experiment("fusion")
    planned = [plan_runs_of_splits(override(base, {"seed": s}), make_splits(), "digest") for s in range(SETTINGS)]
    return [run for folds in planned for runs in folds for run in runs]


@contextmanager
def slow_store() -> Iterator[Counter[str]]:
    """Let each request of a local store take as long as one to an object store, and count them and their bytes."""
    counts, lock = Counter[str](), threading.Lock()
    plain = {name: getattr(LocalBackend, name) for name in ("read", "measure", "list_files")}
    exists = Store.exists

    def look(store: Store, name: str) -> bool:
        time.sleep(LATENCY_S)
        with lock:
            counts["requests"] += 1
        return exists(store, name)

    def ask(name: str, backend: LocalBackend, *given: Any) -> Any:
        found = plain[name](backend, *given)
        pages = max(1, math.ceil(len(found) / 1000)) if name == "list_files" else 1
        time.sleep(LATENCY_S * pages)
        with lock:
            counts["requests"] += pages
            if name == "read":
                counts["bytes"] += len(found)
                counts["weights"] += str(given[0]).endswith(".safetensors")
        return found

    try:
        for name in plain:
            setattr(LocalBackend, name, lambda *given, name=name: ask(name, *given))
        Store.exists = look  # pyright: ignore[reportAttributeAccessIssue]
        yield counts
    finally:
        Store.exists = exists
        for name, method in plain.items():
            setattr(LocalBackend, name, method)


def write_finished(store: Store, runs: list[Run]) -> None:
    weights = {"w": torch.zeros(1000)}
    for run in runs:
        state = CheckpointState(run.key, Position(run.epochs, 0), True, ("a", "b"), DataShapes(30, 2), "digest")
        split = replace(run.split, train=run.split.train[:5], test=())
        checkpoint = Checkpoint(state, run.experiment, split, {}, weights, {})
        write_checkpoint(store, "a0000-aaaaaaaa", checkpoint)
        if run.kind == "encoder":
            store.write(f"{build_embedding_key(run.key, run.embedded_recordings)}/{POINTER}", b"{}")


def run_store(folder: Path) -> Part:
    began = time.perf_counter()
    runs = plan_runs()
    plan_s = time.perf_counter() - began
    store = Store(folder / "finished")
    with patch("os.fsync", lambda descriptor: None):  # of 14,000 files that nobody will miss
        write_finished(store, runs[:-1])
    with slow_store() as counts:
        began = time.perf_counter()
        found = find_finished_runs(runs, store)
        find_s = time.perf_counter() - began
    assert len(found) == len(runs) - 1
    n = len(runs)
    lines = [
        f"{n:,} runs were planned in {plan_s:.1f} s; {n - 1:,} of them were found finished in {find_s:.1f} s at "
        f"{1000 * LATENCY_S:.0f} ms a request: {counts['requests'] / n:.2f} requests and {counts['bytes'] / n:.0f} "
        f"bytes a run, {counts['weights']} files of weights.",
        "",
    ]
    # A protocol asks three times: to say what is to do, to leave out what is finished, and before it starts.
    return lines, [
        Goal("from the command to the first run, without the start of workers", plan_s + 3 * find_s, 60, " s", False),
        Goal("files of weights read to learn what is finished", counts["weights"], 0, "", False),
        Goal("requests a run to learn what is finished", counts["requests"] / n, 6, "", False),
    ]


class MeasuredQueue(QueueActor):
    """The queue's actor, which says what its process has used."""

    def measure(self) -> tuple[float, int]:
        process = psutil.Process()
        times = process.cpu_times()
        return times.user + times.system, int(process.memory_full_info().uss)


def play_groups(queue: Any, numbers: list[int], until: float, rng: np.random.Generator) -> int:
    """Ask a queue as groups do, some of them in one thread: each holds its run every 2 s, reports, and ends it."""
    running: dict[int, tuple[Run, float]] = {}
    due = {number: time.monotonic() + rng.uniform(0, HOLD_INTERVAL_S) for number in numbers}
    wait_s = dict.fromkeys(numbers, 0.2)
    finished = 0
    while time.monotonic() < until and due:
        number = min(due, key=lambda n: due[n])
        time.sleep(max(0.0, due[number] - time.monotonic()))
        if number not in running:
            task: Any = ray.get(queue.pull.remote(number, 1))
            if task == END:
                del due[number]
            elif task == WAIT:
                due[number], wait_s[number] = time.monotonic() + wait_s[number], min(1.5 * wait_s[number], 5.0)
            else:
                running[number] = task, time.monotonic() + rng.uniform(20, 60)
                due[number], wait_s[number] = time.monotonic() + min(HOLD_INTERVAL_S, STOP_POLL_S), 0.2
            continue
        run, ends = running[number]
        ray.get(queue.hold.remote(number, run.key))
        queue.report_progress.remote(Progress(run.key, run.title, 0.5, run.epochs, 1, {"train_loss": 0.5}))
        due[number] = time.monotonic() + min(HOLD_INTERVAL_S, STOP_POLL_S)
        if time.monotonic() > ends:
            ray.get(queue.finish.remote(number, "prefix"))
            del running[number]
            finished += 1
    return finished


def run_queue(folder: Path) -> Part:
    runs = plan_runs()
    e = load_experiment(DEMO, {"store.results": str(folder / "queue")})
    with cluster.connect_to_ray(e.runtime):
        began = time.perf_counter()
        queue: Any = cluster.start_actor_here(MeasuredQueue, runs, Store(folder / "queue"), {}, restarts=True)
        cpu_s, _ = ray.get(queue.measure.remote())
        start_s = time.perf_counter() - began
        until = time.monotonic() + QUEUE_S
        with ThreadPoolExecutor(20) as pool:
            parts = [list(range(k, GROUPS, 20)) for k in range(20)]
            played = [
                pool.submit(play_groups, queue, part, until, np.random.default_rng(k)) for k, part in enumerate(parts)
            ]
            while time.monotonic() < until:
                ray.get(queue.get_state.remote())
                ray.get(queue.drain_progress.remote())
                time.sleep(1)
            finished = sum(future.result() for future in played)
        after_s, memory = ray.get(queue.measure.remote())
        ray.kill(queue)
    share = 100 * (after_s - cpu_s) / QUEUE_S
    lines = [
        f"The queue's actor of {len(runs):,} runs started in {start_s:.1f} s. {GROUPS} groups asked it for "
        f"{QUEUE_S:.0f} s and finished {finished} runs: {share:.1f} % of a core, {memory / 2**20:.0f} MiB of its own.",
        "",
    ]
    return lines, [Goal("the queue's share of a core", share, 20, " %", False)]


def run_groups(folder: Path) -> Part:
    prepare_demo(folder)
    words = [f"store.{k}={folder / k}" for k in ("shards", "results", "cache")]
    words += [f"data.root={folder / 'EAV'}", "split.n_folds=2", "runtime.workers=1", "runtime.groups=2"]
    job = subprocess.Popen([sys.executable, "jobs/train.py", DEMO, *words], stdout=subprocess.DEVNULL)
    used: dict[int, tuple[str, int, bool]] = {}
    process = psutil.Process(job.pid)
    while job.poll() is None:
        for child in [process, *process.children(recursive=True)]:
            try:
                name = child.cmdline()[0] if child.pid != job.pid else "driver"
                memory = int(child.memory_full_info().uss)
                has_torch = any("libtorch" in mapped.path for mapped in child.memory_maps())
            except (psutil.Error, IndexError):
                continue
            if (name.startswith("ray::") and "IDLE" not in name) or name == "driver":
                before = used.get(child.pid, ("", 0, False))
                used[child.pid] = name, max(before[1], memory), before[2] or has_torch
        time.sleep(0.5)
    assert job.returncode == 0
    kinds: dict[str, list[tuple[int, bool]]] = {}
    for name, memory, has_torch in used.values():
        kinds.setdefault(name.removeprefix("ray::").split(".")[0].split(" ")[0], []).append((memory, has_torch))
    lines = [
        "Two groups of one worker, demo models:",
        "",
        "| process | number | MiB of its own | torch |",
        "|---|---|---|---|",
    ]
    for name, found in sorted(kinds.items()):
        mib = format_spread([memory / 2**20 for memory, _ in found], 0)
        lines.append(f"| {name} | {len(found)} | {mib} | {'yes' if any(t for _, t in found) else 'no'} |")
    head = [memory for name, found in kinds.items() if name in ("TrainController", "_run_group") for memory, _ in found]
    return [*lines, ""], [Goal("memory of a group on the head", sum(head) / 2 / 2**20, 500, " MiB", False)]


def main() -> int:
    parts: dict[str, Callable[..., Part]] = {
        "embeddings": run_embeddings,
        "shards": run_shards,
        "trackers": run_trackers,
        "search": run_search,
        "store": run_store,
        "queue": run_queue,
        "groups": run_groups,
    }
    folder, words = parse_arguments(__doc__, ("parts", "gib"))
    chosen = words.get("parts", ",".join(parts)).split(",")
    print(f"to do: {', '.join(chosen)}; about {len(chosen)} minutes on 2 cores", flush=True)
    lines, goals = list[str](), list[Goal]()
    for name in chosen:
        place = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder)) if name not in ("shards", "groups") else folder
        found = parts[name](place, *([float(words.get("gib", 1))] if name == "embeddings" else []))
        print("\n".join(found[0]), *found[1], sep="\n", flush=True)
        lines, goals = lines + found[0], goals + found[1]
    return finish_benchmark("scale", "What a job costs at 2,016 runs, 300 groups and 42 folds", "\n".join(lines), goals)


if __name__ == "__main__":
    sys.exit(main())

"""What it costs to search fusions: trained together as one batch, one after the other, or one Ray Train run each.

    python -m benchmarks.search [FOLDER] [parts=a,b,c] [subjects=42]

a: `jobs/search.py` with 200 candidates of three inner folds of about 200 windows and ten epochs, on synthetic people,
from the command to the last candidate; against one Ray Train run a candidate on the same embeddings, as many side by
side as there are cores. b: windows a second of 64 candidates times three folds, no start-up, against the same fusions
one after the other in one warm process. c: the published scale within people, 64 candidates for each of 42 people with
280 training windows, 50 epochs; whole, and left at a quarter or half of their epochs where they are below the median of
earlier batches of 32, as with search.rungs. Head counts are 1, 2, 4 and 8 in equal parts. b and c read made-up pooled
features as wide as those of the published encoders, 768, 768 and 60 a window.
"""

import multiprocessing as mp
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray
import torch
from ray.train import RunConfig, ScalingConfig
from torch import Tensor

from benchmarks.common import Goal, finish_benchmark, format_spread, parse_arguments
from eav_ray.config import Experiment, load_experiment, override
from eav_ray.data.io import parquet
from eav_ray.data.shards.dataset import Dataset, open_dataset
from eav_ray.data.splits import Split
from eav_ray.data.synthetic.generate import SyntheticSpec, generate_dataset
from eav_ray.distributed import cluster
from eav_ray.distributed.ray_workarounds import get_trainer_class, make_process_group_config
from eav_ray.models.classifier import FusionClassifier
from eav_ray.models.fusion.factory import build_fusion
from eav_ray.pipelines.preprocess.preprocess import preprocess
from eav_ray.pipelines.search import search_plan as search_plan_module
from eav_ray.training.dataloader import BatchLoader, WindowLabels, make_inference_batches
from eav_ray.training.engines.ddp import TorchEngine
from eav_ray.training.loop import fit, make_lr_schedule
from eav_ray.training.prepared_run import open_worker_context
from eav_ray.training.run_spec import Position, Run, plan_fusion_run
from eav_ray.training.runner import train_and_score_split
from eav_ray.tuning.batched_fusion import FusionMember, plan_stacks, train_fusions
from eav_ray.tuning.fusion_stack import FusionStack
from eav_ray.tuning.pruning import PruningSchedule
from eav_ray.tuning.search_space import apply_candidate

CANDIDATES, BATCH, EPOCHS = 200, 100, 10  # of a
WIDTHS, OUTPUTS = {"audio": 768, "eeg": 60, "video": 768}, 5
TIMES = {m: torch.tensor([2.5]) for m in WIDTHS}
HEADS = (1, 2, 4, 8)
N_VALIDATION_WINDOWS, RUNGS, PRUNED_BATCH_SIZE = 60, (0.25, 0.5), 32  # of c
CORES = os.cpu_count() or 1


# a: the job against a run of Ray Train for each candidate


DEMO = "eav_ray/experiments/demo.yaml"


def make_changes(folder: Path) -> dict[str, Any]:
    changes: dict[str, Any] = {"data.root": str(folder / "EAV"), "split.n_folds": 5, "split.n_inner_folds": 3}
    changes |= {f"store.{k}": str(folder / k) for k in ("shards", "results", "cache")}
    changes |= {f"train.encoders.{m}.epochs": 1 for m in WIDTHS}
    changes |= {"fusion.width": 64, "fusion.input": "pooled", "optim.epochs": EPOCHS, "search.ask_batch_size": BATCH}
    return changes | {"runtime.workers": 1, "runtime.groups": CORES}


def make_tune_command(folder: Path, candidates: int) -> list[str]:
    changes = make_changes(folder) | {"search.candidates": candidates}
    return [sys.executable, "jobs/search.py", DEMO, *(f"{key}={value}" for key, value in changes.items())]


def time_search(folder: Path, search_plan: search_plan_module.SearchPlan) -> float:
    """Seconds from the command to the last candidate; the refit, which the rival lacks, is not waited for."""
    trials = folder / "results" / "searches" / search_plan.study_name / "candidates.parquet"
    began = time.time()
    subprocess.run(make_tune_command(folder, CANDIDATES), check=True, capture_output=True)
    rows = parquet.decode_dataframe(trials.read_bytes(), str(trials))
    assert rows["candidate"].nunique() == CANDIDATES and set(rows["state"]) == {"COMPLETE"}
    return trials.stat().st_mtime - began


def _run_candidate(config: dict[str, Any]) -> None:
    """What each run of Ray Train does: a candidate over its inner folds."""
    torch.set_num_threads(1)
    data: Dataset = config["data"]
    e = apply_candidate(config["experiment"], config["changes"])
    search_plan: search_plan_module.SearchPlan = config["planned"]
    context = open_worker_context(e, data, torch.device("cpu"), search_plan.inner_cv.embedded_recordings)
    for split in search_plan.inner_cv.splits:
        train_and_score_split(
            plan_fusion_run(e, split, search_plan.inner_cv.data_digest, search_plan.inner_cv.embedded_recordings),
            context,
        )


@ray.remote(num_cpus=0)
def _run_candidates(
    e: Experiment, search_plan: search_plan_module.SearchPlan, data: Dataset, changes: list[dict[str, Any]], folder: str
) -> None:
    for number, change in enumerate(changes):
        name = f"candidate-{os.getpid()}-{number}"
        config = {"experiment": e, "planned": search_plan, "data": data, "changes": change}
        get_trainer_class()(
            _run_candidate,
            train_loop_config=config,
            backend_config=make_process_group_config("gloo"),
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name=name, storage_path=folder),
        ).fit()


def time_run_each(
    folder: Path, e: Experiment, search_plan: search_plan_module.SearchPlan, data: Dataset, sample: int
) -> float:
    """Seconds a candidate, of some, as many side by side as there are cores; Ray runs already."""
    with cluster.connect_to_ray(e.runtime):
        began = time.perf_counter()
        tasks = [
            _run_candidates.remote(
                e, search_plan, data, [{"fusion.heads": HEADS[k % 4]} for k in range(sample)], str(folder / "ray")
            )
            for _ in range(CORES)
        ]
        ray.get(tasks)
        return (time.perf_counter() - began) / (sample * CORES)


def run_part_a(folder: Path) -> tuple[list[str], list[Goal]]:
    generate_dataset(
        folder / "EAV", SyntheticSpec(n_subjects=10, per_class=2, video_size=(64, 48), fps=5), workers=CORES
    )
    e = load_experiment(DEMO, make_changes(folder))
    preprocess(e)
    data = open_dataset(e)
    subprocess.run(make_tune_command(folder, 1), check=True, capture_output=True)  # the encoders
    search_plan = search_plan_module.plan_search(override(e, {"search.candidates": CANDIDATES}), data)
    windows = median(len(data.windows.find_rows(split.train)) for split in search_plan.inner_cv.splits)
    one_by_one_s = [time_run_each(folder, e, search_plan, data, 3) for _ in range(2)]
    search_s = time_search(folder, search_plan)
    ratio = median(one_by_one_s) * (CANDIDATES - 1) / search_s
    lines = [
        f"a. {CANDIDATES - 1} candidates x 3 inner folds x {EPOCHS} epochs of {windows:.0f} windows (one came with "
        f"the encoders): {search_s:.0f} s from the command to the last candidate. One Ray Train run each, {CORES} side "
        f"by side, of which {CORES * 3} were timed twice: {format_spread(one_by_one_s, 1)} s a candidate, "
        f"{median(one_by_one_s) * (CANDIDATES - 1) / 60:.0f} minutes for all.",
        "",
    ]
    return lines, [Goal("a: the job against one Ray Train run a candidate", ratio, 150, " times")]


# b and c: heads on made-up features


class SyntheticFeatures:
    """Pooled features in which classes differ, of as many windows to train on, and others to validate on."""

    def __init__(self, windows: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.names = sorted(WIDTHS)
        self._windows, self._inputs = windows, {}
        windows += N_VALIDATION_WINDOWS
        self.labels = WindowLabels(np.arange(windows) % OUTPUTS, np.arange(windows) * 7919)
        label = torch.from_numpy(self.labels.label)
        for m, width in WIDTHS.items():
            pooled = torch.randn(windows, width, generator=g) + 0.3 * torch.randn(OUTPUTS, width, generator=g)[label]
            self._inputs |= {f"{m}.pooled": pooled, f"{m}.tokens": pooled[:, None]}
            self._inputs |= {f"{m}.mask": torch.ones(windows, 1, dtype=torch.bool)}
            self._inputs |= {f"{m}.logits": torch.randn(windows, OUTPUTS, generator=g)}

    def get(self, rows: np.ndarray) -> dict[str, Tensor]:
        return {name: x[rows] for name, x in self._inputs.items()}

    def get_presence(self, rows: np.ndarray) -> np.ndarray:
        return np.ones((len(rows), len(WIDTHS)), dtype=bool)

    def loader(self, e: Experiment) -> BatchLoader:
        dropout = e.fusion.modality_dropout
        return BatchLoader(self, self.labels, np.arange(self._windows), e.seed, e.optim.batch, dropout, 0, 1)


def make_candidates(count: int, epochs: int) -> list[Experiment]:
    """Head counts in equal parts, each with a learning rate, a decay and a dropout of its own."""
    rng = np.random.default_rng(0)
    base = override(Experiment(), {"fusion.width": 64, "fusion.input": "pooled", "optim.epochs": epochs})
    return [
        override(
            base,
            {
                "fusion.heads": HEADS[n % 4],
                "fusion.dropout": round(float(rng.uniform(0, 0.3)), 3),
                "optim.lr": float(10 ** rng.uniform(-4, -2.5)),
                "optim.weight_decay": float(10 ** rng.uniform(-3, -1)),
            },
        )
        for n in range(count)
    ]


def make_module(e: Experiment) -> FusionClassifier:
    torch.manual_seed(e.seed)
    return FusionClassifier(build_fusion(e, WIDTHS, TIMES, OUTPUTS), sorted(WIDTHS))


def train_batched(job: tuple[list[Experiment], list[tuple[int, int]], int]) -> float:
    """Train all candidates on each (windows, seed) of made-up features, in stacks; returns seconds."""
    experiments, folds, threads = job
    torch.set_num_threads(threads)
    began = time.perf_counter()
    features = [SyntheticFeatures(*fold) for fold in folds]
    pairs = [(e, n) for e in experiments for n in range(len(features))]
    split = Split("within", (), (), ())
    loaders = [m.loader(experiments[0]) for m in features]
    runs = [(Run("fusion", e, split, "made"), loaders[n].steps_per_epoch) for e, n in pairs]
    for numbers in plan_stacks(runs, experiments[0].search.fusion_batch_size):
        chosen = [pairs[number] for number in numbers]
        train_fusions([FusionMember(make_module(e), e.optim, loaders[n]) for e, n in chosen], torch.device("cpu"))
    return time.perf_counter() - began


def search_with_pruning(job: tuple[list[Experiment], int, int]) -> tuple[float, float]:
    """Search one (windows, person) of made-up features; returns seconds, and the share of epochs that were trained."""
    experiments, windows, seed = job
    torch.set_num_threads(1)
    began = time.perf_counter()
    features = SyntheticFeatures(windows, seed)
    rows = np.arange(windows, windows + N_VALIDATION_WINDOWS)
    ((_, batch),) = make_inference_batches(features, features.labels, rows, N_VALIDATION_WINDOWS)
    epochs = experiments[0].optim.epochs
    rung_epochs = PruningSchedule(RUNGS).resolve_epochs(epochs)
    scores_by_epoch: dict[int, list[float]] = {epoch: [] for epoch in rung_epochs}  # accuracies of earlier batches
    trained = 0
    for start in range(0, len(experiments), PRUNED_BATCH_SIZE):
        some = experiments[start : start + PRUNED_BATCH_SIZE]
        pruning_thresholds = {epoch: median(found) for epoch, found in scores_by_epoch.items() if found}
        loader = features.loader(some[0])
        runs = [(Run("fusion", e, Split("within", (), (), ()), "made"), loader.steps_per_epoch) for e in some]
        for numbers in plan_stacks(runs, some[0].search.fusion_batch_size):
            pruned_epochs: list[int] = []  # epochs of those that did not stay

            def report_intermediate(
                epoch: int,
                stack: FusionStack,
                rows: dict[int, int],
                pruning_thresholds: dict[int, float] = pruning_thresholds,
                pruned_epochs: list[int] = pruned_epochs,
            ) -> set[int]:
                if epoch not in rung_epochs:
                    return set()
                predicted_class = stack.compute_logits(batch, list(rows.values())).argmax(2)
                accuracies = (predicted_class == batch.label_B).float().mean(1).tolist()
                scores_by_epoch[epoch] += accuracies
                pruned = {
                    h for h, score in zip(rows, accuracies, strict=True) if score < pruning_thresholds.get(epoch, 0.0)
                }
                pruned_epochs.extend([epoch] * len(pruned))
                return pruned

            heads = [FusionMember(make_module(some[n]), some[n].optim, loader) for n in numbers]
            train_fusions(heads, torch.device("cpu"), report_intermediate=report_intermediate)
            trained += sum(pruned_epochs) + epochs * (len(heads) - len(pruned_epochs))
    return time.perf_counter() - began, trained / (epochs * len(experiments))


def train_one_by_one(experiments: list[Experiment], features: SyntheticFeatures, threads: int) -> float:
    """Seconds of all, each with an engine of its own."""
    torch.set_num_threads(threads)
    began = time.perf_counter()
    for e in experiments:
        runtime = replace(e.runtime, engine="torch")
        engine = TorchEngine(make_module(e), e.optim, runtime, torch.device("cpu"), None)
        loader = features.loader(e)
        fit(
            engine,
            start=Position(0, 0),
            stop=Position(e.optim.epochs, 0),
            lr=make_lr_schedule(e.optim, loader.steps_per_epoch),
            batches=loader.batches,
            on_epoch_end=lambda position, sums: None,
        )
    return time.perf_counter() - began


def run_part_b(pool: ProcessPoolExecutor, rounds: int = 3) -> tuple[list[str], list[Goal]]:
    epochs, windows = 6, 200
    experiments = make_candidates(64, epochs)
    folds = [(windows, n) for n in range(3)]
    n_batched_windows, n_single_windows = 64 * len(folds) * epochs * windows, 8 * epochs * windows
    train_one_by_one(experiments[:2], SyntheticFeatures(windows, 0), 1)
    rates: dict[str, list[float]] = {}
    for _ in range(rounds):
        for threads in (1, CORES):
            rate = n_single_windows / train_one_by_one(experiments[:8], SyntheticFeatures(windows, 0), threads)
            rates.setdefault(f"one after the other, {threads} threads", []).append(rate)
        began = time.perf_counter()
        list(pool.map(train_batched, [(experiments[k::CORES], folds, 1) for k in range(CORES)]))
        rates.setdefault(f"together, {CORES} processes", []).append(n_batched_windows / (time.perf_counter() - began))
        rate = 32 * len(folds) * epochs * windows / train_batched((experiments[:32], folds, CORES))
        rates.setdefault(f"together, one process of {CORES} threads", []).append(rate)
    *one_by_one_rates, batched_rate, _ = (median(r) for r in rates.values())
    lines = ["b. 64 candidates x 3 folds, width 64, pooled, batches of 32:", "", "| way | head-windows a second |"]
    lines += ["|---|---|", *(f"| {way} | {format_spread(np.array(r), 0)} |" for way, r in rates.items()), ""]
    return lines, [Goal("b: together against one after the other", batched_rate / max(one_by_one_rates), 2.5, " times")]


def run_part_c(pool: ProcessPoolExecutor, n_subjects: int) -> tuple[list[str], list[Goal]]:
    experiments = make_candidates(64, 50)
    began = time.perf_counter()
    jobs = [(experiments, [(280, subject_number)], 1) for subject_number in range(n_subjects)]
    for number, seconds in enumerate(pool.map(train_batched, jobs)):
        print(f"person {number + 1} of {n_subjects}: {seconds:.0f} s", flush=True)
    minutes = (time.perf_counter() - began) / 60 * 42 / n_subjects
    began, shares = time.perf_counter(), []
    for number, (seconds, share) in enumerate(
        pool.map(search_with_pruning, [(experiments, 280, subject) for subject in range(n_subjects)])
    ):
        shares.append(share)
        print(
            f"person {number + 1} of {n_subjects}, with looks: {seconds:.0f} s, {share:.0%} of the epochs", flush=True
        )
    pruned_minutes = (time.perf_counter() - began) / 60 * 42 / n_subjects
    extrapolated = "" if n_subjects == 42 else " for 42 people, extrapolated"
    lines = [
        f"c. 64 candidates x {n_subjects} people x 50 epochs of 280 windows, {CORES} processes: {minutes:.1f} minutes "
        f"whole, {pruned_minutes:.1f} with looks at {RUNGS[0]:g} and {RUNGS[1]:g} of the epochs in batches of "
        f"{PRUNED_BATCH_SIZE}, which train {median(shares):.0%} of them{extrapolated}.",
        "",
    ]
    return lines, [
        Goal("c: the published scale without pruning", minutes, 20, " minutes", False),
        Goal("c: the published scale with pruning", pruned_minutes, 10, " minutes", False),
    ]


def main() -> int:
    folder, words = parse_arguments(__doc__, ("parts", "subjects"))
    parts, n_subjects = words.get("parts", "a,b,c").split(","), int(words.get("subjects", 42))
    print(
        f"to do: parts {', '.join(parts)}; about {12 * ('a' in parts) + 3 + n_subjects} minutes on 2 cores", flush=True
    )
    report_lines, goals = [], []
    if "a" in parts:
        lines, found = run_part_a(folder)
        report_lines, goals = report_lines + lines, goals + found
    with ProcessPoolExecutor(CORES, mp.get_context("spawn")) as pool:
        list(pool.map(train_batched, [(make_candidates(4, 1), [(64, 0)], 1)] * CORES))  # warm
        if "b" in parts:
            lines, found = run_part_b(pool)
            report_lines, goals = report_lines + lines, goals + found
        if "c" in parts:
            lines, found = run_part_c(pool, n_subjects)
            report_lines, goals = report_lines + lines, goals + found
    return finish_benchmark("search", "What it costs to search fusions", "\n".join(report_lines), goals)


if __name__ == "__main__":
    sys.exit(main())

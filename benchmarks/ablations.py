"""What options of training win or cost, over people never seen.

    EAV_RAY_REAL=... python -m benchmarks.ablations FOLDER [part=fusion|audio|spectrogram|joint] [workers=2]

One option at a time is turned from what it is by default, three seeds, the same folds; accuracy is compared pairwise
over people, seeds averaged first. FOLDER is that of `python -m benchmarks.synthetic FOLDER`, whose people and frozen
encoders serve here; what is done is kept there, and the same command continues.

- fusion: shared attention on frozen encoders of synthetic people.
- audio: the `mfcc` encoder on RAVDESS, balanced accuracy of windows.
- spectrogram: SpecAugment, on the small AST and synthetic people.
- joint: learning rate of encoders when all is trained together, on the cheap encoders and synthetic people.
"""

import multiprocessing
import os
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks import synthetic
from benchmarks.common import find_real_data, finish_benchmark, parse_arguments, read_table, write_table
from benchmarks.gains import format_gains
from benchmarks.real import score_subjects
from eav_ray.config import Experiment, digest, load_experiment, override
from eav_ray.data.shards.dataset import Dataset, open_dataset
from eav_ray.data.splits import Split, list_labeled_recordings, make_split
from eav_ray.pipelines.preprocess.preprocess import preprocess
from eav_ray.storage import Store
from eav_ray.training.prepared_run import WorkerContext
from eav_ray.training.run_spec import Run, plan_encoder_run, plan_fusion_run
from eav_ray.training.runner import execute_run, train_and_predict_split

SEEDS, FOLDS_OF_REAL_PEOPLE = 3, 8
MFCC_CHANGES: dict[str, Any] = {
    "model.audio": {"kind": "mfcc"},
    "split.n_folds": FOLDS_OF_REAL_PEOPLE,
    "train.encoders.audio.lr": 2e-3,
    "train.encoders.audio.epochs": 30,
    "train.encoders.audio.batch": 32,
    "train.checkpoint_epochs": 1000,
}
SMALL_JOINT_CHANGES = {
    "data.modalities": ["audio", "eeg"],
    "model.audio": {"kind": "mfcc"},
    "model.eeg": {"kind": "bandpower"},
    "train.mode": "end_to_end",
    "optim.epochs": 8,
    "optim.batch": 32,
}


@dataclass(frozen=True)
class Option:
    part: str
    name: str
    changes: dict[str, Any] = field(default_factory=dict)


OPTIONS = (
    Option("fusion", "none"),
    Option("fusion", "mixup 0.2", {"optim.mixup": 0.2}),
    Option("fusion", "label smoothing 0.1", {"optim.label_smoothing": 0.1}),
    Option("fusion", "no warm-up", {"optim.warmup": 0.0}),
    Option("fusion", "no modality dropout", {"fusion.modality_dropout": 0.0}),
    Option("fusion", "no weight loss", {"fusion.modality_weight_loss": 0.0}),
    Option("fusion", "no late-fusion residual", {"fusion.late_fusion_residual": False}),
    Option("fusion", "pooled input", {"fusion.input": "pooled"}),
    Option("fusion", "two query steps", {"fusion.n_query_steps": 2}),
    Option("audio", "none"),
    Option("audio", "class weights", {"train.encoders.audio.class_weights": True}),
    Option("audio", "mixup 0.2", {"train.encoders.audio.mixup": 0.2}),
    Option("audio", "label smoothing 0.1", {"train.encoders.audio.label_smoothing": 0.1}),
    Option("audio", "no warm-up", {"train.encoders.audio.warmup": 0.0}),
    Option("spectrogram", "none"),
    Option("spectrogram", "SpecAugment", {"model.audio.mask_bands": 24, "model.audio.mask_frames": 48}),
    Option("joint", "none", SMALL_JOINT_CHANGES),
    Option("joint", "encoders at 0.1 of the rate", SMALL_JOINT_CHANGES | {"optim.encoder_lr_scale": 0.1}),
    Option("joint", "encoders at 0.3 of the rate", SMALL_JOINT_CHANGES | {"optim.encoder_lr_scale": 0.3}),
    Option("joint", "no late-fusion residual", SMALL_JOINT_CHANGES | {"fusion.late_fusion_residual": False}),
    Option("joint", "no weight loss", SMALL_JOINT_CHANGES | {"fusion.modality_weight_loss": 0.0}),
)
PART_DESCRIPTIONS = {
    "fusion": "shared attention on frozen encoders, synthetic people, balanced accuracy of recordings",
    "audio": "`mfcc` on RAVDESS, balanced accuracy of windows",
    "spectrogram": "AST (96 wide, 3 layers), synthetic people, balanced accuracy of recordings",
    "joint": "`mfcc` and `bandpower` trained end to end, synthetic people, balanced accuracy of recordings",
}
Job = tuple[Option, int, int]  # fold, seed


def make_experiment(option: Option, folder: Path, fold: int) -> Experiment:
    here: dict[str, Any] = {"runtime.engine": "torch", "runtime.workers": 1, "split.index": fold}
    if option.part == "audio":
        here |= {"data.root": str(find_real_data() / "ravdess")}
        here |= {f"store.{k}": str(folder / k) for k in ("shards", "results", "cache")}
        return load_experiment("eav_ray/experiments/ravdess.yaml", here | MFCC_CHANGES | option.changes)
    return synthetic.make_experiment(folder, here | option.changes)


def count_folds(part: str) -> int:
    return FOLDS_OF_REAL_PEOPLE if part == "audio" else synthetic.FOLDS


def make_run(part: str, e: Experiment, data: Dataset, seed: int) -> Run:
    """The training of an option, validated on the people that the fold holds out."""
    split = make_split(list_labeled_recordings(data.windows.ids, e.data, e.seed), e.split)
    split = Split(split.protocol, split.train, split.test, ())
    if part == "fusion":
        run = plan_fusion_run(e, split, data.digest, (*split.train, *split.validation))
    elif part == "joint":
        run = Run("joint", e, split, data.digest)
    else:
        run = plan_encoder_run(e, "audio", split, data.digest, ())
    # Another seed of the training, on the same folds and frozen encoders.
    return replace(run, experiment=override(run.experiment, {"seed": seed}))


def evaluate_option(job: Job, folder: Path) -> pd.DataFrame:
    """`subject`, and `accuracy`: the balanced accuracy of their recordings, or on real people windows."""
    torch.set_num_threads(1)
    option, fold, seed = job
    e = make_experiment(option, folder, fold)
    data = open_dataset(e)
    run = make_run(option.part, e, data, seed)
    results, name = Store(e.store.results), f"ablations/{digest(run.key, run.embedded_recordings, seed)}.parquet"
    cached = read_table(results, name)
    if cached is not None:
        return cached
    table = train_and_predict_split(run, WorkerContext(data.windows, results, torch.device("cpu")))
    unit = "window" if option.part == "audio" else "recording"
    return write_table(results, name, score_subjects(table, {"fusion": option.name}, unit))


def write_embeddings(folder: Path, fold: int) -> None:
    """What the frozen encoders make of everybody, those held out included."""
    torch.set_num_threads(1)
    e = synthetic.make_experiment(folder, {"runtime.engine": "torch", "runtime.workers": 1, "split.index": fold})
    data = open_dataset(e)
    run = make_run("fusion", e, data, e.seed)
    context = WorkerContext(data.windows, Store(e.store.results), torch.device("cpu"))
    for m in e.data.modalities:
        execute_run(
            plan_encoder_run(e, m, run.split, data.digest, run.embedded_recordings), context, lambda progress: None
        )


def format_report(tables: dict[tuple[str, str], list[pd.DataFrame]]) -> list[str]:
    lines = [
        "One option at a time turned from `none`; people never seen, seeds averaged first, then paired over people.",
    ]
    for part, description in PART_DESCRIPTIONS.items():
        options = [o for o in OPTIONS if o.part == part and (part, o.name) in tables]
        if not options:
            continue
        accuracy_by_option = {
            o.name: 100 * pd.concat(tables[part, o.name]).groupby("subject")["accuracy"].mean() for o in options
        }
        lines += [
            "",
            f"## {description}",
            "",
            f"{len(accuracy_by_option['none'])} people, {SEEDS} seeds.",
            "",
            *format_gains("turned", accuracy_by_option, "none"),
        ]
    return lines


def main() -> int:
    folder, words = parse_arguments(__doc__, ("part", "workers"))
    workers = int(words.get("workers", os.cpu_count() or 1))
    options = [o for o in OPTIONS if words.get("part", o.part) == o.part]
    jobs = [(o, fold, seed) for seed in range(SEEDS) for o in options for fold in range(count_folds(o.part))]
    if any(o.part == "audio" for o in options):
        preprocess(make_experiment(next(o for o in options if o.part == "audio"), folder, 0))
    print(f"to do: {len(jobs)} trainings, less what is done in FOLDER; about an hour on 2 cores", flush=True)
    tables: dict[tuple[str, str], list[pd.DataFrame]] = {}
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        if any(o.part == "fusion" for o in options):
            pool.map(partial(write_embeddings, folder), range(synthetic.FOLDS))
        for k, (job, table) in enumerate(
            zip(jobs, pool.imap(partial(evaluate_option, folder=folder), jobs), strict=True), 1
        ):
            tables.setdefault((job[0].part, job[0].name), []).append(table)
            print(f"{k}/{len(jobs)} {job[0].part}, {job[0].name}", flush=True)
    if len(options) < len(OPTIONS):  # the page is of all parts
        print("\n".join(format_report(tables)))
        return 0
    return finish_benchmark("ablations", "What options of training are worth", "\n".join(format_report(tables)), [])


if __name__ == "__main__":
    sys.exit(main())

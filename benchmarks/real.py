"""Real people never seen: encoders and their fusion against classical classifiers in the same folds.

    EAV_RAY_REAL=... python -m benchmarks.real [FOLDER] [stage=inner] [dataset=ravdess] [access=unlabelled_block]
    [seeds=5] [workers=2] [key=value ...]

RAVDESS speech and face (five emotions, 16 actors, 36 recordings each) and EEG During Mental Arithmetic (rest against
arithmetic, 16 people, windows of 5 s), two people held out in each of eight folds. Everything is scored at two levels
of access to the people who are tested: `source_only`, and `unlabelled_block`, where features are normalised within each
person by all of their recordings and no label. What is trained is written in decision 0032, which came before the first
score of an outer fold.

`stage=inner` scores a design on inner folds of the training people alone, seven of each outer fold; `key=value` words
change it, as in an experiment. Without it the outer folds are trained and scored, and the pages real.md and real.csv
are written: a row of real.csv is a model, a seed and a person. FOLDER keeps what is done: the same command continues.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import nn

from benchmarks.common import (
    RESULTS_FOLDER,
    Goal,
    find_real_data,
    finish_benchmark,
    parse_arguments,
    read_table,
    write_table,
)
from eav_ray.config import Experiment, digest, load_experiment, override, parse_changes
from eav_ray.data.shards.dataset import Dataset, open_dataset
from eav_ray.data.shards.location import name_index_folder, open_shard_store
from eav_ray.data.splits import LabeledRecording, Split, list_labeled_recordings, make_inner_splits, make_split
from eav_ray.evaluation.comparisons import PairedComparison, compare_differences
from eav_ray.evaluation.statistics import compute_difference_interval
from eav_ray.models.classifier import Classifier
from eav_ray.pipelines.evaluate.baseline import run_baselines
from eav_ray.pipelines.preprocess.preprocess import preprocess
from eav_ray.storage import Store
from eav_ray.training.checkpoint import OpenedCheckpoint, build_trained_model
from eav_ray.training.computed_features import FeatureMemory
from eav_ray.training.dataloader import RawSource, WindowLabels, find_channel_orders
from eav_ray.training.metrics import RULE_SOURCES, average_per_recording, predict_classes
from eav_ray.training.predictions import compute_predictions
from eav_ray.training.prepared_run import WorkerContext
from eav_ray.training.run_spec import plan_runs
from eav_ray.training.runner import execute_run
from eav_ray.training.subject_statistics import normalise_source

SEEDS, FOLDS, INNER_FOLDS = 5, 8, 7
ACCESS_LEVELS = ("source_only", "unlabelled_block")
FEATURES = FeatureMemory()  # for all trainings of a process
FORMAT_VERSION = 1  # raise when what is kept of a fold changes


@dataclass(frozen=True)
class Set:
    """A data set, the design that was chosen for it, and what it is held against.

    Attributes:
        unit: Of which each person's balanced accuracy is: `recording` or `window`.
        bars: Model -> percent at `unlabelled_block`, and the baseline that is its rival: its source, as `eav baseline`
            names it.
    """

    name: str
    title: str
    chance: int
    unit: str
    changes: Mapping[str, Any]
    bars: Mapping[str, tuple[float, str]]


def make_design_changes(*modalities: str) -> dict[str, Any]:
    """Make the changes of an experiment that name the encoders of some modalities and their trainings."""
    changes: dict[str, Any] = {"data.modalities": list(modalities)}
    for m in modalities:
        changes |= {f"model.{m}": DESIGNS[m], **{f"train.encoders.{m}.{k}": v for k, v in TRAININGS[m].items()}}
    return changes


def make_ravdess_changes() -> dict[str, Any]:
    faces = find_real_data() / "ravdess_faces" / "action_units.csv"
    columns = [name for name in pd.read_csv(faces, nrows=0).columns if name != "clip"]
    return make_design_changes("audio", "face") | {
        "data.features": {"face": {"path": str(faces), "key": "clip"}},
        "preprocessing.features": {"face": {"columns": columns}},
        "fusion": DESIGNS["fusion"],
        **{f"optim.{k}": v for k, v in TRAININGS["fusion"].items()},
    }


# Of decision 0032: chosen on inner folds.
DESIGNS: dict[str, dict[str, Any]] = {
    "audio": {"kind": "mfcc", "segments": 1, "dropout": 0.5, "input_dropout": 0.3},
    "face": {"kind": "features", "input_dropout": 0.3},
    "eeg": {"kind": "covariance"},
    "fusion": {"kind": "shared_attention", "width": 64, "heads": 4},
}
OPTIM = {"batch": 32, "class_weights": True}
TRAININGS: dict[str, dict[str, Any]] = {
    "audio": OPTIM | {"lr": 1e-3, "epochs": 30, "weight_decay": 1.0, "label_smoothing": 0.3},
    "face": OPTIM | {"lr": 1e-3, "epochs": 30, "weight_decay": 1.0, "label_smoothing": 0.1},
    "eeg": OPTIM | {"lr": 3e-4, "epochs": 10},
    "fusion": {"lr": 3e-4, "epochs": 10, "batch": 32},
}
SPEECH, FACE, BOTH, EEG = "audio", "face", "fusion", "eeg"
WITHOUT_TERM, WITHOUT_RESIDUAL = "fusion, attention term zero", "fusion, late_fusion_residual=false"


def list_sets() -> list[Set]:
    return [
        Set(
            "ravdess",
            "RAVDESS, five emotions, 16 actors",
            20,
            "recording",
            make_ravdess_changes(),
            {
                SPEECH: (71.4, "logistic.audio"),
                FACE: (82.8, "logistic.face"),
                BOTH: (90.3, "fused.product"),
            },
        ),
        Set(
            "eegmat",
            "EEG During Mental Arithmetic, rest against arithmetic, 16 people",
            50,
            "window",
            make_design_changes("eeg"),
            {EEG: (68.6, "logistic.eeg")},
        ),
    ]


@dataclass(frozen=True)
class Job:
    """One split, to be trained and scored."""

    dataset: str
    access: str
    seed: int
    fold: int
    inner_fold: int | None = None


def make_experiment(one: Set, folder: str, job: Job, changes: Mapping[str, Any]) -> Experiment:
    """Make the experiment of a job: one modality or all, normalised within people where the level allows."""
    common: dict[str, Any] = {
        "data.root": str(find_real_data() / one.name),
        "split.n_folds": FOLDS,
        "split.n_inner_folds": INNER_FOLDS,
        "split.index": job.fold,
        "split.access": job.access,
        "seed": job.seed,
        "runtime.engine": "torch",
        "runtime.workers": 1,
        "train.checkpoint_epochs": 1000,
    }
    common |= {f"store.{k}": f"{folder}/{k}" for k in ("shards", "results", "cache")}
    normalisation = "none" if job.access == "source_only" else "standardise"
    sections = {f"model.{m}.subject_normalisation": normalisation for m in one.changes["data.modalities"]}
    return load_experiment(f"eav_ray/experiments/{one.name}.yaml", common | dict(one.changes) | sections | changes)


def plan_split(e: Experiment, items: list[LabeledRecording], job: Job) -> Split:
    """Plan the outer split of a job; of an inner one what is scored stands on the test side."""
    if job.inner_fold is None:
        return make_split(items, e.split)
    inner = make_inner_splits(items, e.split)[job.inner_fold]
    return replace(inner, validation=(), test=inner.validation)


def score_job(job: Job, folder: str, changes: Mapping[str, Any]) -> tuple[Job, float, pd.DataFrame]:
    """Train what a split needs and score the people on its test side.

    Returns:
        The job, seconds, and `model`, `subject` and `accuracy`, balanced over each person's classes.
    """
    began = time.perf_counter()
    torch.set_num_threads(1)
    (one,) = (s for s in list_sets() if s.name == job.dataset)
    e = make_experiment(one, folder, job, changes)
    data = open_dataset(e)
    items = list_labeled_recordings(data.windows.ids, e.data, e.seed)
    split = plan_split(e, items, job)
    e_other = override(e, {"fusion.late_fusion_residual": False}) if has_residual(e) else None
    variants = {BOTH: e} | ({WITHOUT_RESIDUAL: e_other} if e_other and job.inner_fold is None else {})
    keys = [plan_runs(variant, split, data.digest)[-1].key for variant in variants.values()]
    results = Store(e.store.results)
    name = f"real/{digest(FORMAT_VERSION, keys, sorted(split.test), one.unit)}.parquet"
    table = read_table(results, name)
    if table is None:
        labels = WindowLabels.from_windows(data.windows, {i.id: i.label for i in items})
        parts = [score_variant(v, split, data, labels, label, one.unit) for label, v in variants.items()]
        # Encoders and rules are the same whatever the fusion is.
        table = pd.concat(parts).drop_duplicates(["model", "subject"]).reset_index(drop=True)
        write_table(results, name, table)
    return job, time.perf_counter() - began, table


def has_residual(e: Experiment) -> bool:
    return len(e.data.modalities) > 1 and getattr(e.fusion, "late_fusion_residual", False)


def score_variant(
    e: Experiment, split: Split, data: Dataset, labels: WindowLabels, label: str, unit: str
) -> pd.DataFrame:
    """Train a model of all modalities, and score it, its encoders and the rules of fusion.

    Args:
        label: What the fusion is called.
    """
    context = WorkerContext(data.windows, Store(e.store.results), torch.device("cpu"), features=FEATURES)
    prefix = ""
    for run in plan_runs(e, split, data.digest):
        prefix = execute_run(run, context, lambda progress: None)
    checkpoint = OpenedCheckpoint(context.results, prefix)
    model = build_trained_model(checkpoint).eval()
    windows, rows = data.windows, data.windows.find_rows(split.test)
    channel_names = checkpoint.state.shapes.eeg_channel_names
    stored = RawSource(
        windows, model.modalities, channel_orders=find_channel_orders(windows, model.modalities, channel_names)
    )
    source = normalise_source(stored, e, checkpoint.state.shapes, windows, lambda: (windows, split.test), FEATURES)

    def predict() -> pd.DataFrame:
        with torch.no_grad():
            return compute_predictions(lambda b: model(b.inputs, b.present_BM), source, labels, rows, windows, 64)

    predictions = predict()
    if len(model.modalities) == 1:
        return score_subjects(predictions, {"fusion": model.modalities[0]}, unit)
    names = {"fusion": label} | {s: s for s in (*model.modalities, *RULE_SOURCES)}
    tables = [score_subjects(predictions, names, unit)]
    if has_residual(e):
        remove_attention_term(model)
        tables.append(score_subjects(predict(), {"fusion": WITHOUT_TERM}, unit))
    return pd.concat(tables)


def remove_attention_term(model: Classifier) -> None:
    """Set to zero what attention adds to the log probabilities of the modalities; its weights of these stay."""
    assert model.fusion is not None
    output = model.fusion.get_submodule("head.1")
    assert isinstance(output, nn.Linear)
    with torch.no_grad():
        output.weight.zero_()
        output.bias.zero_()


def score_subjects(predictions: pd.DataFrame, names: Mapping[str, str], unit: str) -> pd.DataFrame:
    """Score each person by some sources: balanced accuracy over recordings or windows.

    Args:
        names: Source -> what it is called.
    """
    table = average_per_recording(predictions) if unit == "recording" else predictions
    parts = []
    for source, name in names.items():
        correct = pd.Series(predict_classes(table, source) == table["label"].to_numpy(), table.index)
        recall = correct.groupby([table["subject"], table["label"]]).mean()
        accuracy = recall.groupby(level=0).mean()
        parts.append(pd.DataFrame({"model": name, "subject": accuracy.index, "accuracy": accuracy.to_numpy()}))
    return pd.concat(parts, ignore_index=True)


def score_baselines(one: Set, folder: str, access: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """Score the people by every baseline, as `score_job` does; also returns what tables call each."""
    result = run_baselines(make_experiment(one, folder, Job(one.name, access, 0, 0), {})).result
    return score_subjects(result.predictions, {source: source for source in result.titles}, one.unit), result.titles


def run_jobs(
    jobs: list[Job], folder: str, changes: Mapping[str, Any], workers: int
) -> Iterator[tuple[Job, pd.DataFrame]]:
    # New processes: what torch has set up here does not survive a fork.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        done = pool.imap_unordered(partial(score_job, folder=folder, changes=changes), jobs)
        for k, (job, seconds, table) in enumerate(done, 1):
            print(
                f"{k}/{len(jobs)} {job.dataset} {job.access} seed {job.seed} fold {job.fold}: {seconds:.0f} s",
                flush=True,
            )
            yield job, table


def score_inner(sets: list[Set], levels: list[str], seeds: int, run: Callable[[list[Job]], Iterator[Any]]) -> int:
    """Print the mean over people of a design on inner folds: each person is scored once in each other outer fold."""
    for one in sets:
        for access in levels:
            jobs = [
                Job(one.name, access, s, f, i) for s in range(seeds) for f in range(FOLDS) for i in range(INNER_FOLDS)
            ]
            table = pd.concat([found.assign(seed=job.seed) for job, found in run(jobs)])
            by_seed = table.groupby(["model", "seed"])["accuracy"].mean().unstack()
            for model, row in (100 * by_seed).iterrows():
                print(f"inner {one.name} {access} {model}: {row.mean():.1f} (seeds {row.min():.1f} to {row.max():.1f})")
    return 0


def write_report(scores: pd.DataFrame, titles: Mapping[str, str]) -> int:
    """Write the pages of the outer folds.

    Args:
        scores: `dataset`, `access`, `model`, `seed` (empty of a baseline), `subject`, `accuracy`.
        titles: Of baselines.
    """
    RESULTS_FOLDER.mkdir(parents=True, exist_ok=True)
    columns = ["dataset", "access", "model", "seed", "subject", "accuracy"]
    ordered = scores[columns].sort_values(columns[:-1], key=lambda c: c.astype(str))
    ordered.to_csv(RESULTS_FOLDER / "real.csv", index=False, float_format="%.4f", lineterminator="\n")
    lines = [
        "Balanced accuracy of each person, percent, and its mean over people; seeds are averaged within each person "
        "before people are compared. Intervals are Student's t over people, 95 %. A classical classifier has no seed. "
        "Every training ran on one thread. What was to be compared is in "
        "[decision 0032](../decisions/0032-real-people.md), which came first. The scores of each person: "
        "[real.csv](real.csv).",
    ]
    goals: list[Goal] = []
    for one in list_sets():
        for access in ACCESS_LEVELS:
            part = scores[(scores["dataset"] == one.name) & (scores["access"] == access)]
            lines += ["", f"## {one.title}: {access}", "", *describe_level(one, part, titles)]
        reached = part.groupby("model")["accuracy"].mean()  # of the last level: the seeds are as many for everybody
        goals += [
            Goal(f"{one.name} {model} at {ACCESS_LEVELS[-1]}", 100 * float(reached[model]), bar, " %")
            for model, (bar, _) in one.bars.items()
        ]
    return finish_benchmark("real", "Real people never seen", "\n".join(lines), goals)


def describe_level(one: Set, scores: pd.DataFrame, titles: Mapping[str, str]) -> list[str]:
    """Describe what a data set's models reach at a level of access, and how they compare."""
    by_model = {str(m): t.groupby("subject")["accuracy"].mean() for m, t in scores.groupby("model")}
    by_seed = scores[scores["seed"] != ""].groupby(["model", "seed"])["accuracy"].mean().unstack()
    lines = [
        f"Of each {one.unit}; chance {one.chance}; {by_seed.shape[1]} seeds.",
        "",
        "| model | mean | 95 % | seeds from, to |",
        "|---|---|---|---|",
    ]
    for model, values in by_model.items():
        interval = compute_difference_interval(100 * values.to_numpy())
        seeds = "-"
        if model in by_seed.index:
            seeds = f"{100 * by_seed.loc[model].min():.1f}, {100 * by_seed.loc[model].max():.1f}"
        bounds = f"{interval.low:.1f} to {interval.high:.1f}"
        lines.append(f"| {titles.get(model, model)} | {interval.mean:.1f} | {bounds} | {seeds} |")
    pairs = [(model, rival) for model, (_, rival) in one.bars.items()]
    if BOTH in by_model:
        best = max((SPEECH, FACE), key=lambda m: by_model[m].mean())
        pairs += [(BOTH, other) for other in (best, *RULE_SOURCES, WITHOUT_TERM, WITHOUT_RESIDUAL)]
    compared = compare_differences([(a, b, (by_model[a] - by_model[b]).to_numpy()) for a, b in pairs])
    return [*lines, "", *(describe_comparison(c, titles) for c in compared)]


def describe_comparison(c: PairedComparison, titles: Mapping[str, str]) -> str:
    d = c.difference
    outcome = "ahead" if d.low > 0 else "behind" if d.high < 0 else "no difference shown"
    return (
        f"- {c.ours} less {titles.get(c.other, c.other)}: {100 * d.mean:+.1f} "
        f"({100 * d.low:+.1f} to {100 * d.high:+.1f}), {c.n_better} people better, {c.n_worse} worse, "
        f"p {c.p_value:.2g}, Holm {c.holm_p_value:.2g}: {outcome}"
    )


KEYS = ("stage", "dataset", "access", "seeds", "workers")


def main() -> int:
    path, words = parse_arguments(__doc__, None)
    folder, workers = str(path), int(words.get("workers", os.cpu_count() or 1))
    changes = parse_changes([f"{k}={v}" for k, v in words.items() if k not in KEYS])
    inner = words.get("stage") == "inner"
    if changes and not inner:
        sys.exit(
            "error: the outer folds are scored with the design of decision 0032 alone; give stage=inner to try another"
        )
    seeds = int(words.get("seeds", 1 if inner else SEEDS))
    sets = [s for s in list_sets() if words.get("dataset", s.name) == s.name]
    levels = [a for a in ACCESS_LEVELS if words.get("access", a) == a]
    for one in sets:
        e = make_experiment(one, folder, Job(one.name, "source_only", 0, 0), {})
        if not open_shard_store(e).exists(f"{name_index_folder(e)}/index.json"):
            preprocess(override(e, {"runtime.engine": "deepspeed"}))
    run = partial(run_jobs, folder=folder, changes=changes, workers=workers)
    if inner:
        return score_inner(sets, levels, seeds, run)
    jobs = [Job(s.name, a, n, f) for n in range(seeds) for s in sets for a in levels for f in range(FOLDS)]
    print(f"to do: {len(jobs)} folds; what is done in {folder} is read", flush=True)
    parts = [table.assign(dataset=job.dataset, access=job.access, seed=str(job.seed)) for job, table in run(jobs)]
    titles: dict[str, str] = {}
    for one in sets:
        for access in levels:
            table, own_titles = score_baselines(one, folder, access)
            titles |= own_titles
            parts.append(table.assign(dataset=one.name, access=access, seed=""))
    if len(sets) < len(list_sets()) or len(levels) < len(ACCESS_LEVELS):
        print("a part of the data sets or levels makes no page")
        return 0
    return write_report(pd.concat(parts, ignore_index=True), titles)


if __name__ == "__main__":
    sys.exit(main())

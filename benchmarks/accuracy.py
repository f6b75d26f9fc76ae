"""Accuracy on real recordings of people never seen: every audio and EEG encoder against support-vector machines.

    EAV_RAY_REAL=... python -m benchmarks.accuracy [FOLDER] [dataset=ravdess] [case=mfcc] [seeds=1] [workers=1]
    [train=no]

RAVDESS speech (five emotions, 16 actors) and EEG During Mental Arithmetic (rest against arithmetic, 16 people), two
people held out in each of eight folds, three seeds. All sides have the same stored windows and folds; the machines
choose their penalty on inner folds of the training people. What is compared is each person's balanced accuracy over
windows, seeds averaged first, paired over people. FOLDER keeps what is done: the same command continues, and
with `train=no` the page is written of the seeds that are whole.
"""

import hashlib
import multiprocessing
import os
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pandas as pd
import torch
from scipy.stats import wilcoxon
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from benchmarks.common import Goal, find_real_data, finish_benchmark, parse_arguments, read_table, write_table
from eav_ray.config import Experiment, digest, load_experiment, override
from eav_ray.data.shards.dataset import Dataset, open_dataset
from eav_ray.data.shards.location import open_shard_store
from eav_ray.data.splits import list_labeled_recordings, make_split
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.bandpower import BandPower
from eav_ray.models.encoders.base import DataShapes, Features
from eav_ray.models.encoders.mfcc import MFCC, SAMPLE_RATE_HZ
from eav_ray.models.encoders.silence import find_sound
from eav_ray.pipelines.preprocess.preprocess import preprocess
from eav_ray.storage import Store
from eav_ray.training.checkpoint import OpenedCheckpoint, build_trained_model
from eav_ray.training.cost import estimate_seconds_per_window
from eav_ray.training.dataloader import RawSource, WindowLabels
from eav_ray.training.predictions import compute_predictions
from eav_ray.training.prepared_run import WorkerContext
from eav_ray.training.run_spec import plan_runs
from eav_ray.training.runner import execute_run

SEEDS, FOLDS = 3, 8
SILENCE_DB = 30.0  # as the sections of audio encoders have it
SVM_LABEL = "support-vector machine"


@dataclass(frozen=True)
class Case:
    dataset: str
    name: str
    label: str  # in the table
    changes: dict[str, Any] = field(default_factory=dict)
    features: str = ""  # of a support-vector machine; empty for an encoder


def make_encoder_case(
    dataset: str, name: str, label: str, kind: str, sizes: dict[str, Any], optim: dict[str, Any], **more: Any
) -> Case:
    modality = "audio" if dataset == "ravdess" else "eeg"
    changes = {f"model.{modality}": {"kind": kind} | sizes} | {
        f"train.encoders.{modality}.{k}": v for k, v in ({"class_weights": True, "batch": 32} | optim).items()
    }
    return Case(dataset, name, label, changes | {k.replace("__", "."): v for k, v in more.items()})


AST_SMALL = {"width": 96, "depth": 4, "heads": 3, "stride": 16}
EEGFORMER_SMALL = {"filters": 16, "width": 128, "temporal_width": 128, "depth": 1, "heads": 8, "dropout": 0.3}
CASES = (
    Case("ravdess", "svm-mfcc", f"{SVM_LABEL}, statistics of MFCC", features="mfcc"),
    Case("ravdess", "svm-logmel", f"{SVM_LABEL}, statistics of log-mel bands", features="logmel"),
    make_encoder_case("ravdess", "mfcc", "mfcc, 64 wide", "mfcc", {}, {"lr": 2e-3, "epochs": 30}),
    make_encoder_case("ravdess", "ast", "AST, small (96 wide, 4 layers)", "ast", AST_SMALL, {"lr": 1e-3, "epochs": 20}),
    Case("eegmat", "svm-bands", f"{SVM_LABEL}, band powers", features="bands"),
    Case(
        "eegmat",
        "svm-bands-aligned",
        f"{SVM_LABEL}, band powers, people standardised",
        {"preprocessing.eeg.align": "standardise"},
        features="bands",
    ),
    make_encoder_case("eegmat", "bandpower", "bandpower, 64 wide", "bandpower", {}, {"lr": 1e-3, "epochs": 10}),
    make_encoder_case(
        "eegmat",
        "bandpower-aligned",
        "bandpower, 64 wide, people standardised",
        "bandpower",
        {},
        {"lr": 1e-3, "epochs": 10},
        preprocessing__eeg__align="standardise",
    ),
    make_encoder_case(
        "eegmat",
        "bandpower-euclidean",
        "bandpower, 64 wide, Euclidean alignment",
        "bandpower",
        {},
        {"lr": 1e-3, "epochs": 10},
        preprocessing__eeg__align="euclidean",
    ),
    make_encoder_case(
        "eegmat", "eegformer", "EEGformer, small", "eegformer", EEGFORMER_SMALL, {"lr": 5e-4, "epochs": 6}
    ),
    make_encoder_case(
        "eegmat",
        "eegformer-aligned",
        "EEGformer, small, people standardised",
        "eegformer",
        EEGFORMER_SMALL,
        {"lr": 5e-4, "epochs": 6},
        preprocessing__eeg__align="standardise",
    ),
    make_encoder_case(
        "eegmat", "eav", "the reference's EEG transformer", "eav_transformer", {}, {"lr": 1e-3, "epochs": 4}
    ),
)


def make_experiment(case: Case, folder: Path, fold: int = 0, seed: int = 0) -> Experiment:
    common = {
        "data.root": str(find_real_data() / case.dataset),
        "split.n_folds": FOLDS,
        "split.index": fold,
        "seed": seed,
    }
    common |= {"runtime.engine": "torch", "runtime.workers": 1, "train.checkpoint_epochs": 1000}
    common |= {f"store.{k}": str(folder / k) for k in ("shards", "results", "cache")}
    return load_experiment(f"eav_ray/experiments/{case.dataset}.yaml", common | case.changes)


def cache_features() -> None:
    """From here on this process computes the MFCC of a window once, not once an epoch: nearly all of their time."""
    if hasattr(MFCC.compute_features, "known"):
        return
    plain, known = MFCC.compute_features, {}

    def features(self: MFCC, x_BT: torch.Tensor) -> Features:
        own = (self.segments, self.coefficients, self.silence_db)
        keys = [(own, hashlib.sha256(row.numpy().tobytes()).digest()) for row in x_BT]
        new = [i for i, key in enumerate(keys) if key not in known]
        if new:
            known.update(zip((keys[i] for i in new), zip(*plain(self, x_BT[new]), strict=True), strict=True))
        found, masks = zip(*(known[key] for key in keys), strict=True)
        return Features(torch.stack(found), torch.stack(masks))

    features.known = known  # pyright: ignore[reportFunctionMemberAccess]
    MFCC.compute_features = features


def evaluate_case(case: Case, folder: Path, fold: int, seed: int, train: bool = True) -> pd.DataFrame | None:
    """Predictions for the people held out, a row a window: `subject`, `label`, `predicted_class`. Made once, then read
    back.

    Args:
        train: None is returned of what was not made yet, if not.
    """
    torch.set_num_threads(1)
    cache_features()
    e = make_experiment(case, folder, fold, seed)
    data = open_dataset(e)
    items = list_labeled_recordings(data.windows.ids, e.data, e.seed)
    split = make_split(items, e.split)
    (run,) = plan_runs(e, split, data.digest)
    key = digest(run.key, case.features, sorted(split.test), FEATURES_VERSION)
    results, name = Store(e.store.results), f"accuracy/{key}.parquet"
    cached = read_table(results, name)
    if cached is not None or not train:
        return cached
    labels = WindowLabels.from_windows(data.windows, {i.id: i.label for i in items})
    rows = data.windows.find_rows(split.test)
    if case.features:
        predicted_class = predict_by_svm(
            case.features, e, data, data.windows.find_rows(split.train), rows, labels.label
        )
    else:
        context = WorkerContext(data.windows, results, torch.device("cpu"))
        prefix = execute_run(run, context, lambda progress: None)
        model = build_trained_model(OpenedCheckpoint(results, prefix)).eval()
        predicted_class = predict_classes(model, data, labels, rows)
    ids = data.windows.ids.iloc[rows]
    table = pd.DataFrame({"subject": ids["subject"].to_numpy(), "label": labels.label[rows], "guess": predicted_class})
    return write_table(results, name, table)


def predict_classes(model: Classifier, data: Dataset, labels: WindowLabels, rows: np.ndarray) -> np.ndarray:
    source = RawSource(data.windows, model.modalities)
    with torch.no_grad():
        table = compute_predictions(lambda b: model(b.inputs, b.present_BM), source, labels, rows, data.windows, 64)
    return table[[c for c in table.columns if c.startswith("fusion.logit_")]].to_numpy().argmax(1)


FEATURES_VERSION = 2  # raise when the features below change


def predict_by_svm(
    kind: str, e: Experiment, data: Dataset, train: np.ndarray, test: np.ndarray, label: np.ndarray
) -> np.ndarray:
    """A support-vector machine with a radial kernel, its penalty chosen on inner folds of the training people."""
    rows = np.concatenate([train, test])
    x = compute_features(kind, e, data, rows)
    train_subjects = data.windows.ids["subject"].to_numpy()[train]
    pipeline = make_pipeline(StandardScaler(), SVC(class_weight="balanced"))
    grid = {"svc__C": [0.1, 1, 10, 100], "svc__gamma": [0.3 / x.shape[1], 1 / x.shape[1], 3 / x.shape[1]]}
    search = GridSearchCV(pipeline, grid, scoring="balanced_accuracy", cv=GroupKFold(7))
    search.fit(x[: len(train)], label[train], groups=train_subjects)
    return search.predict(x[len(train) :])


def compute_features(kind: str, e: Experiment, data: Dataset, rows: np.ndarray) -> np.ndarray:
    """(rows, features) of whole windows; of audio, of what is sound, without silent ends."""
    if kind == "bands":
        x = torch.from_numpy(data.windows.get(rows, "eeg"))
        bands = BandPower(
            x.shape[1], x.shape[2], hz=e.preprocessing.eeg.hz, window_s=5, segments=1, width=1, dropout=0.0
        )
        return bands.compute_differential_entropy(x).flatten(1).numpy()
    found = []
    mfcc = MFCC(window_s=5, coefficients=20, segments=1, width=1, dropout=0.0, silence_db=SILENCE_DB)
    for wave in data.windows.get(rows, "audio"):
        if kind == "mfcc":
            found.append(mfcc.compute_features(torch.from_numpy(wave[None]))[0][0, 0].numpy())
        else:
            bounds = find_sound(torch.from_numpy(wave[None]), SILENCE_DB)
            sound = wave[int(bounds.begin_B) : int(bounds.end_B)]
            mel = librosa.feature.melspectrogram(y=sound, sr=SAMPLE_RATE_HZ, n_fft=512, hop_length=160, n_mels=64)
            decibel = librosa.power_to_db(mel, top_db=None)
            found.append(np.concatenate([decibel.mean(-1), decibel.std(-1)]))
    return np.stack(found)


def compute_subject_accuracy(tables: list[pd.DataFrame]) -> pd.Series:
    """Balanced accuracy over each person's windows, the mean over seeds."""
    predictions = pd.concat(tables)
    correct = predictions["guess"] == predictions["label"]
    by_class = correct.groupby([predictions["subject"], predictions["label"]]).mean()
    return by_class.groupby(level=0).mean()


def run_job(job: tuple[Case, int, int], folder: Path, train: bool) -> tuple[str, int, float, pd.DataFrame | None]:
    began = time.perf_counter()
    table = evaluate_case(job[0], folder, job[1], job[2], train)
    return job[0].name, job[2], time.perf_counter() - began, table


def announce(jobs: list[tuple[Case, int, int]], folder: Path, workers: int) -> None:
    seconds, encoders = 0.0, 0
    for case in {c.name: c for c, _, _ in jobs}.values():
        e = make_experiment(case, folder)
        data = open_dataset(e)
        count = sum(c.name == case.name for c, _, _ in jobs)
        windows = len(data.windows) * (FOLDS - 1) / FOLDS
        if case.features:
            seconds += 10 * count
            continue
        encoders += count
        shapes = DataShapes(data.index.eeg_channels, len(data.index.classes))
        (each,) = estimate_seconds_per_window(override(e, {"runtime.gpus_per_worker": 0}), shapes).values()
        epochs = e.train.encoders[e.data.modalities[0]].epochs
        seconds += each * windows * epochs * count
    print(
        f"to do: {encoders} encoder trainings, {len(jobs) - encoders} support-vector machines; about "
        f"{seconds / workers / 60:.0f} minutes on {workers} cores, less what is done in {folder}",
        flush=True,
    )


def write_report(tables: dict[str, list[pd.DataFrame]]) -> int:
    lines = [
        "Balanced accuracy of each person's windows, percent; seeds are averaged before people are compared. A machine "
        "has no seed."
    ]
    goals = []
    for name, title, chance in (
        ("ravdess", "RAVDESS, five emotions", 20),
        ("eegmat", "EEGMAT, rest against arithmetic", 50),
    ):
        accuracy_by_case = {
            c.name: compute_subject_accuracy(tables[c.name]) for c in CASES if c.dataset == name and c.name in tables
        }
        svm_cases = [c for c in CASES if c.dataset == name and c.features and c.name in accuracy_by_case]
        encoder_cases = [c for c in CASES if c.dataset == name and not c.features and c.name in accuracy_by_case]
        if not svm_cases or not encoder_cases:
            continue
        best_svm = max(svm_cases, key=lambda c: accuracy_by_case[c.name].mean())
        count = len(accuracy_by_case[best_svm.name])
        lines += [
            "",
            f"## {title}, {count} people, chance {chance}",
            "",
            "| model | seeds | mean | SD over people | less the best machine | better, worse | Wilcoxon p |",
            "|---|---|---|---|---|---|---|",
        ]
        for case in (*svm_cases, *encoder_cases):
            mean, sd = 100 * accuracy_by_case[case.name].mean(), 100 * accuracy_by_case[case.name].std(ddof=1)
            gain = (accuracy_by_case[case.name] - accuracy_by_case[best_svm.name]).to_numpy() * 100
            compared = f"{gain.mean():+.1f} | {(gain > 0).sum()}, {(gain < 0).sum()} | {format_p_value(gain)}"
            runs = "-" if case.features else len(tables[case.name]) // FOLDS
            lines.append(
                f"| {case.label} | {runs} | {mean:.1f} | {sd:.1f} | "
                f"{compared if case is not best_svm else '- | - | -'} |"
            )
        best = max(encoder_cases, key=lambda c: accuracy_by_case[c.name].mean())
        gain = 100 * float((accuracy_by_case[best.name] - accuracy_by_case[best_svm.name]).mean())
        goals.append(Goal(f"{title}: {best.name} less {best_svm.name}", gain, 0.0, " points"))
    lines += [
        "",
        "Encoders are of the small sizes named, from random values. The video encoder has no labelled real recordings "
        "here: what it can do was shown on synthetic people only.",
    ]
    return finish_benchmark("accuracy", "Accuracy on real recordings, people never seen", "\n".join(lines), goals)


def format_p_value(gain: np.ndarray) -> str:
    return f"{wilcoxon(gain).pvalue:.3g}" if gain.any() else "1"


def main() -> int:
    folder, words = parse_arguments(__doc__, ("dataset", "case", "seeds", "workers", "train"))
    seeds, workers = int(words.get("seeds", SEEDS)), int(words.get("workers", os.cpu_count() or 1))
    cases = [c for c in CASES if words.get("dataset", c.dataset) == c.dataset and words.get("case", c.name) == c.name]
    preprocessed: set[str] = set()
    for case in cases:
        e = make_experiment(case, folder)
        store = open_shard_store(e).root
        if store not in preprocessed:
            preprocess(override(e, {"runtime.engine": "deepspeed"}))
            preprocessed.add(store)
    jobs = [(c, f, s) for s in range(seeds) for c in cases for f in range(FOLDS) if not c.features or s == 0]
    train = words.get("train") != "no"
    if train:
        announce(jobs, folder, workers)
    found: dict[tuple[str, int], list[pd.DataFrame]] = {}
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        each = pool.imap_unordered(partial(run_job, folder=folder, train=train), jobs)
        for k, (name, seed, seconds, table) in enumerate(each, 1):
            if table is not None:
                found.setdefault((name, seed), []).append(table)
                print(f"{k}/{len(jobs)} {name}: {seconds:.0f} s", flush=True)
    tables: dict[str, list[pd.DataFrame]] = {}
    for (name, _), parts in found.items():
        if len(parts) == FOLDS:
            tables.setdefault(name, []).extend(parts)
    if len(cases) < len(CASES):
        for name, parts in tables.items():
            print(f"{name}: {100 * compute_subject_accuracy(parts).mean():.1f}")
        return 0
    return write_report(tables)


if __name__ == "__main__":
    sys.exit(main())

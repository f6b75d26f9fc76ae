"""Permuted labels give chance, true labels do not: the whole path from windows to a score leaks nothing (R19)."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

from eav_ray.config import Experiment, load_experiment, override
from eav_ray.data.shards import index as shards_index
from eav_ray.data.shards import schema, tables
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import Split, list_labeled_recordings, make_split
from eav_ray.data.synthetic import generate, ideal_observer, render
from eav_ray.errors import ConfigError, DataError
from eav_ray.storage import Store, list_package_versions, sha256
from eav_ray.training.checkpoint import OpenedCheckpoint, build_trained_model
from eav_ray.training.embeddings import build_embedding_key, find_embeddings
from eav_ray.training.prepared_run import WorkerContext
from eav_ray.training.run_spec import plan_encoder_run
from eav_ray.training.runner import execute_run
from tests.helpers.paths import DEMO

PEOPLE, PER_CLASS, HZ = 4, 12, 100


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> WorkerContext:
    """Four people's synthetic EEG as shards: one window a recording, rendered at the stored rate."""
    folder = tmp_path_factory.mktemp("control")
    experiment = experiment_of("true")
    shards, of = Store(folder / "shards"), schema.make_schema(experiment.preprocessing, 30, ("eeg",))
    plan, files = generate.SyntheticSpec(n_subjects=PEOPLE, per_class=PER_CLASS), []
    for subject in range(1, PEOPLE + 1):
        rng = np.random.default_rng(subject)
        scalp, rows = render.draw_scalp(rng), []
        for truth in generate.draw_ground_truths(plan, subject):
            x_TC = render.render_eeg(scalp, truth.latents["eeg"], False, rng, hz=HZ, seconds=5)
            x_CT = (x_TC - x_TC.mean(0)).T.astype(np.float32)
            ids = {"subject": f"subject{subject}", "recording": f"{truth.key:03d}", "window": 0, "label": truth.label}
            ids |= {"task": "speaking", "order": truth.key}
            rows.append(ids | {"eeg": x_CT, "has_eeg": True, "eeg_seconds": 5.0, "eeg_bad_channels": 0})
        content = tables.encode_parquet(tables.build_window_table(rows, of))
        shards.write(f"{subject}.parquet", content)
        files.append(shards_index.ShardFile(f"{subject}.parquet", sha256(content), len(rows), f"subject{subject}"))
    index = shards_index.ShardIndex(
        "control", ideal_observer.CLASSES, ("eeg",), 30, tuple(files), list_package_versions()
    )
    shards_index.write_index(shards, index)
    windows = WindowCache(shards, shards_index.read_index(shards), cache=folder / "cache", cache_gb=1)
    return WorkerContext(windows, Store(folder / "results"), torch.device("cpu"))


def experiment_of(labels: str) -> Experiment:
    demo = DEMO
    small = {"data.modalities": ["eeg"], "data.labels": labels, "split.n_folds": 2, "split.protocol": "subject_kfold"}
    trained = {"train.encoders.eeg.epochs": 5, "train.encoders.eeg.batch": 16}
    small |= {f"model.eeg.{k}": v for k, v in {"filters": 4, "width": 32, "temporal_width": 32, "heads": 2}.items()}
    return load_experiment(demo, small | trained | {"runtime.workers": 1, "runtime.engine": "torch"})


def correct_and_count(place: WorkerContext, labels: str) -> tuple[int, int]:
    """Recordings of people held out that are named rightly, of one fold."""
    experiment = experiment_of(labels)
    items = list_labeled_recordings(place.windows.ids, experiment.data, experiment.seed)
    split = make_split(items, experiment.split)
    prefix = execute_run(plan_encoder_run(experiment, "eeg", split, "control", ()), place, lambda progress: None)
    model = build_trained_model(OpenedCheckpoint(place.results, prefix)).eval()
    rows = place.windows.find_rows(split.test)
    with torch.no_grad():
        x = torch.from_numpy(place.windows.get(rows, "eeg"))
        guess = model({"eeg": x}, torch.ones(len(rows), 1, dtype=torch.bool)).logits_BK.argmax(1).numpy()
    truth = {i.id: i.label for i in items}
    correct = int((guess == place.windows.ids["id"].iloc[rows].map(truth).to_numpy()).sum())
    count = len(rows)
    return correct, count


def test_permuted_labels_stay_inside_the_chance_band(place: WorkerContext) -> None:
    correct, count = correct_and_count(place, "permuted")
    low, high = binom.interval(0.999, count, 1 / len(ideal_observer.CLASSES))
    assert low <= correct <= high


def test_true_labels_are_learned_far_above_chance(place: WorkerContext) -> None:
    correct, count = correct_and_count(place, "true")
    assert correct > binom.ppf(0.9999, count, 1 / len(ideal_observer.CLASSES))


@pytest.mark.parametrize("leak", ["subject2/001", "subject1/001"])
def test_a_run_that_leaks_does_not_start(place: WorkerContext, leak: str) -> None:
    """A recording of a training person, or a training recording itself, is forced into the test side."""
    split = Split("subject_kfold", ("subject1/001", "subject2/002"), (), (leak,))
    with pytest.raises(ConfigError, match="both in train and in test; the run does not start"):
        execute_run(plan_encoder_run(experiment_of("true"), "eeg", split, "leak", ()), place, lambda progress: None)


def test_a_run_without_a_training_row_is_refused(place: WorkerContext) -> None:
    """A person whose recordings lack the modality, in a protocol of one person."""
    split = Split("loso", ("nobody/001",), (), ("subject1/001",))
    with pytest.raises(DataError, match="no training row has eeg"):
        execute_run(plan_encoder_run(experiment_of("true"), "eeg", split, "none", ()), place, lambda progress: None)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_and_leaves_the_clock_exact(place: WorkerContext, precision: str) -> None:
    experiment = override(experiment_of("true"), {"runtime.precision": precision, "train.encoders.eeg.epochs": 1})
    subjects = sorted(set(place.windows.ids["id"]))
    split = Split("subject_kfold", tuple(subjects[:20]), (), (subjects[-1],))
    run = plan_encoder_run(experiment, "eeg", split, "half", tuple(subjects[:2]))
    prefix = execute_run(run, place, lambda progress: None)
    saved = OpenedCheckpoint(place.results, prefix).load()
    assert saved.metrics["train_loss"] < 2 and all(torch.isfinite(t).all() for t in saved.weights.values())
    embeddings = find_embeddings(place.results, build_embedding_key(run.key, run.embedded_recordings))
    times = place.results.read_json(f"{embeddings}/times.json")
    exact = build_trained_model(saved).encoders["eeg"].times_s
    assert isinstance(exact, torch.Tensor) and torch.equal(torch.tensor(times["times_s"]), exact)

"""The whole path runs as jobs on a real Ray: preprocess, train, tune, pull, evaluate, predict, on synthetic people."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray
import safetensors.torch
import timm
import torch

from eav_ray.config import load_experiment, parse_changes
from eav_ray.data.shards.dataset import open_dataset
from eav_ray.data.synthetic.ideal_observer import CLASSES
from eav_ray.distributed.scoring import Scorer, ScoringTask
from eav_ray.errors import DataError
from eav_ray.pipelines.evaluate.robustness import RobustnessOptions, run_robustness
from eav_ray.training.checkpoint import open_checkpoint
from tests.helpers.clusters import ONE_WORKER, Job
from tests.helpers.paths import TINY

pytestmark = pytest.mark.ray


def test_preprocessing_again_skips_what_is_finished(job: Job, preprocessed: list[str]) -> None:
    assert "6 of them finished earlier" in job("preprocess", *preprocessed).stdout


def test_a_recording_that_cannot_be_read_is_set_aside_with_its_reason(
    job: Job, synthetic: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "EAV"
    shutil.copytree(synthetic / "subject1", copy / "subject1")
    broken = sorted((copy / "subject1" / "Video").glob("*.mp4"))[3]
    broken.write_bytes(broken.read_bytes()[:200])
    done = job("preprocess", TINY, f"data.root={copy}", f"store.shards={tmp_path / 'shards'}")
    assert "1 recording or file set aside" in done.stdout and broken.name in done.stdout
    job(
        "preprocess",
        TINY,
        f"data.root={copy}",
        f"store.shards={tmp_path / 's2'}",
        "preprocessing.on_bad=fail",
        expect=2,
    )


# Runs before anything else in every Python process: reading one of the videos ends the process, as a decoder that
# fails in C would.
DEADLY = """
import importlib.abc, importlib.util, os, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "eav_ray.data.io.video":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            read = module.read_video
            module.read_video = lambda path, *a, **k: os._exit(9) if "/004_" in str(path) else read(path, *a, **k)
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Finder())
"""


def test_a_file_that_ends_its_process_costs_one_recording(job: Job, synthetic: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(DEADLY)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    copy = tmp_path / "EAV"
    shutil.copytree(synthetic / "subject1", copy / "subject1")
    words = [TINY, f"data.root={copy}", f"store.shards={tmp_path / 'shards'}"]
    done = job("preprocess", *words, own_ray=True, more={"PYTHONPATH": path})
    assert "36 windows" in done.stdout and "1 recording or file set aside" in done.stdout
    assert "subject1 004: reading one of its files ends the process" in done.stdout


def test_the_search_keeps_a_row_per_candidate_and_fold(tuned: Path) -> None:
    (study,) = (tuned / "searches").iterdir()
    trials = pd.read_parquet(study / "candidates.parquet")
    assert sorted(zip(trials["candidate"], trials["fold"], strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert set(trials["state"]) == {"COMPLETE"}
    best = json.loads((study / "best.json").read_text())
    means = trials.groupby("candidate")["validation_recording_balanced_accuracy"].mean()
    assert best["value"] == pytest.approx(means.max()) and best["candidate"] == means.idxmax()


def test_the_same_search_again_runs_nothing_twice(job: Job, preprocessed: list[str], tuned: Path) -> None:
    (study,) = (tuned / "searches").iterdir()
    before = pd.read_parquet(study / "candidates.parquet")
    done = job("search", *preprocessed)
    assert "nothing to do: 9 trainings finished and 2 candidates scored earlier" in done.stdout
    pd.testing.assert_frame_equal(before, pd.read_parquet(study / "candidates.parquet"))


def test_the_pulled_checkpoint_is_tested_once_and_predicts_raw_files(
    job: Job, preprocessed: list[str], tuned: Path, place: Path, synthetic: Path
) -> None:
    assert "tiny-" in job("pull", str(tuned), "--list").stdout
    best = place / "best"
    job("pull", str(tuned), "--to", str(best))
    split = json.loads((best / "split.json").read_text())
    assert not {r.split("/")[0] for r in split["train"]} & {r.split("/")[0] for r in split["test"]}
    first = job("evaluate", *preprocessed, "--checkpoint", str(best))
    assert (
        "10 recordings of 1 person" in first.stdout and "mean_probability" in first.stdout and "chance" in first.stdout
    )
    again = job("evaluate", *preprocessed, "--checkpoint", str(best))
    assert again.stdout == first.stdout and len(list((tuned / "evaluations").iterdir())) == 2  # and the training side
    page = Path(first.stdout.rsplit("page: ", 1)[1].strip())
    assert page.parent.parent == tuned / "results_pages" and "Leak audit" in page.read_text()
    results = json.loads((page.parent / "results.json").read_text())
    outcomes = {check["name"]: check["outcome"] for check in results["audit"]["checks"]}
    assert len(outcomes) == 10 + 3 and "failed" not in outcomes.values()
    assert outcomes["origin of searched values"] == "passed"
    assert outcomes["statistics fitted on training rows only"] == "passed"
    assert results["reference"] is None  # these people were drawn: no published number is of them
    assert set(results["histories"]["0"]) == {"audio", "eeg", "video", "fusion"}
    assert [h["epoch"] for h in results["histories"]["0"]["fusion"]] == [1, 2]
    assert results["search"][0]["study"] in [p.name for p in (tuned / "searches").iterdir()]
    frames = {s: one["frame"] for s, one in results["accuracy"]["sources"].items()}
    assert frames["audio"] is None and 0 <= frames["video"] <= 1
    assert (page.parent / "model_card.md").read_text().startswith("# tiny: a checkpoint")
    subject = split["test"][0].split("/")[0]
    job("predict", str(best), f"data.root={synthetic}", f"data.subjects=[{subject}]", "--out", str(place / "p.csv"))
    predicted = pd.read_csv(place / "p.csv")
    assert len(predicted) == 10
    assert set(predicted["label"]) | set(predicted["predicted"]) <= set(CLASSES)
    assert np.allclose(predicted[[c for c in predicted if c.startswith("weight.")]].sum(axis=1), 1, atol=1e-5)
    # The shards and the raw files go through the same preprocessing, so both ways give the same logits.
    tables = [pd.read_parquet(kept) for kept in (tuned / "evaluations").iterdir()]
    (tested,) = [t.groupby("recording")["fusion.logit_0"].mean() for t in tables if set(t["subject"]) == {subject}]
    by_raw = predicted.set_index(predicted["recording"].astype(str).str.zfill(3))[f"logit.{CLASSES[0]}"]
    assert np.allclose(tested, by_raw[tested.index], atol=1e-5)
    words = [f"data.subjects=[{subject}]", "--shards", "--out", str(place / "p.parquet")]
    job("predict", str(best), f"data.root={synthetic}", *words)
    by_shards = pd.read_parquet(place / "p.parquet")
    assert by_shards["predicted"].tolist() == predicted["predicted"].tolist()
    assert np.allclose(by_shards.filter(like="probability."), predicted.filter(like="probability."), atol=1e-5)
    assert len(pd.read_parquet(place / "p-windows.parquet")) == 40
    # A modality that is not there, or not wanted, is a missing one: its weight is exactly 0.
    changes = [f"data.root={synthetic}", f"data.subjects=[{subject}]", "data.modalities=[audio,eeg]"]
    job("predict", str(best), *changes, "--out", str(place / "two.csv"))
    two = pd.read_csv(place / "two.csv")
    assert len(two) == 10 and (two["weight.video"] == 0).all() and two[f"video.logit.{CLASSES[0]}"].isna().all()


def test_a_checkpoint_is_adapted_to_a_subject_and_scored_on_the_rest(
    job: Job, preprocessed: list[str], tuned: Path, place: Path
) -> None:
    best = place / "to-adapt"
    job("pull", str(tuned), "--to", str(best))
    subject = json.loads((best / "split.json").read_text())["test"][0].split("/")[0]
    words = ["--checkpoint", str(best), "--subject", subject, "--recordings", "4"]
    done = job("adapt", *preprocessed, *ONE_WORKER, "train.adaptation.batch=2", "train.adaptation.epochs=2", *words)
    assert "1 joint training" in done.stdout
    path = done.stdout.rsplit("checkpoint: ", 1)[1].split()[0]
    tested = job("evaluate", *preprocessed, "--checkpoint", path).stdout
    assert "6 recordings of 1 person after adaptation with 4 others of theirs" in tested
    trained = json.loads((best / "split.json").read_text())["train"][0].split("/")[0]
    words[3] = trained
    assert "never saw" in job("adapt", *preprocessed, "train.adaptation.batch=2", *words, expect=2).stderr


def test_robustness_is_measured_one_modality_at_a_time_and_the_command_continues(
    job: Job, preprocessed: list[str], tuned: Path, place: Path, synthetic: Path
) -> None:
    best, out = place / "to-corrupt", place / "corrupted"
    job("pull", str(tuned), "--to", str(best))
    asked = ["--corruptions", "gaussian,eeg.dropout,darkness", "--severity-levels", "2", "--out", str(out)]
    done = job("robustness", str(best), f"data.root={synthetic}", *asked)
    assert "robustness: 11 conditions x 10 recordings of 1 person; about " in done.stdout
    (folder,) = (out / "robustness").iterdir()
    tree = json.loads((folder / "results.json").read_text())
    assert len(tree["conditions"]) == 11 and tree["checkpoint"]["commit_sha256"]
    tables = {c["name"]: pd.read_parquet(folder / f"{c['name']}.parquet") for c in tree["conditions"]}
    clean = tables["clean"]
    # Clean recordings are predicted as jobs/evaluate.py does from the shards.
    places = [f"store.{key}={place / folder}" for key, folder in (("shards", "data/shards"), ("cache", "cache"))]
    experiment = load_experiment(TINY, parse_changes([*preprocessed[1:], *places, "runtime.gpus_per_worker=0"]))
    data, test = open_dataset(experiment), tuple(json.loads((best / "split.json").read_text())["test"])
    _, scored, _ = Scorer(experiment, data, test).score(0, ScoringTask(open_checkpoint(str(best)), test))
    kept = scored.require()
    assert len(kept) == len(clean) == 40
    kept = kept.sort_values(["subject", "recording", "window"], ignore_index=True)
    for column in [c for c in kept.columns if "logit_" in c or "weight." in c]:
        assert np.allclose(kept[column], clean[column], atol=1e-5)
    for kind in ("audio.gaussian", "eeg.gaussian", "video.darkness"):
        corrupted = kind.partition(".")[0]
        moved = []
        for step in (1, 2):
            now = tables[f"{kind}.{step}"]
            for m in ("audio", "eeg", "video"):
                logits = [f"{m}.logit_{k}" for k in range(len(CLASSES))]
                far = np.abs(now[now["reason"] == ""][logits].to_numpy() - clean[logits].to_numpy())
                if m == corrupted:
                    moved.append(np.nanmean(far) if np.isfinite(far).any() else np.inf)
                else:
                    assert far.max() < 1e-5  # another modality is as it was
        assert 0 < moved[0] < moved[1]
    # Of ten electrodes seven are off: the cleaning refuses the recording's EEG, which is then masked, not missed.
    off = tables["eeg.dropout.2"]
    assert off[off["reason"] == ""]["eeg.logit_0"].isna().all() and (off[off["reason"] == ""]["weight.eeg"] == 0).all()
    assert "100 % of eeg refused by preprocessing" in done.stdout

    # A condition that is not there is computed again, without its neighbours, and comes out as it was.
    (folder / "results.json").unlink()
    (folder / "audio.gaussian.2.parquet").unlink()
    before = {p: p.stat().st_mtime_ns for p in folder.glob("*.parquet")}
    again = job("robustness", str(best), f"data.root={synthetic}", *asked)
    assert "robustness: 1 condition (10 others are there) x 10 recordings" in again.stdout
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "audio.gaussian.2.parquet"), tables["audio.gaussian.2"])
    assert again.stdout.splitlines()[1:] == done.stdout.splitlines()[1:]
    assert before == {p: p.stat().st_mtime_ns for p in before}

    # What is whole is read, and Ray is not started.
    words = RobustnessOptions(kinds=("gaussian", "eeg.dropout", "darkness"), steps=2)
    read = run_robustness(str(best), {"data.root": str(synthetic)}, words, str(out))
    assert read.text.splitlines() == done.stdout.splitlines()[1:] and not ray.is_initialized()
    other = place / "others" / "subject9"
    shutil.copytree(synthetic / "subject1", other)
    (other / "EEG" / "subject1_eeg.mat").rename(other / "EEG" / "subject9_eeg.mat")
    (other / "EEG" / "subject1_eeg_label.mat").rename(other / "EEG" / "subject9_eeg_label.mat")
    with pytest.raises(DataError, match=r"does not hold 10 of the 10 recordings .*; set data\.root to .*--all"):
        run_robustness(str(best), {"data.root": str(other.parent)}, words, str(out))


# Every kind of encoder and fusion in some combination, on two ranks.
WAYS = {
    "deepspeed, cheap encoders": ["train.mode=end_to_end", "model.eeg.kind=bandpower", "model.audio.kind=mfcc"],
    "torch, the reference's encoder": [
        "train.mode=end_to_end",
        "runtime.engine=torch",
        "model.eeg.kind=eav_transformer",
        "fusion.kind=bottleneck",
        "runtime.gradient_checkpointing=true",
        "optim.mixup=0.4",
        "optim.class_weights=true",
    ],
    "staged, then joint": [
        "train.mode=staged_then_joint",
        "fusion.kind=single_token",
        "fusion.heads=4",
        "train.joint.epochs=1",
        "train.joint.encoder_lr_scale=0.1",
    ],
}


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the video encoder of tiny.yaml, as timm saves them."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(3)
    sizes = dict(img_size=32, patch_size=16, embed_dim=16, depth=1, num_heads=2)
    vit = timm.create_model("vit_base_patch16_224", num_classes=0, **sizes)
    safetensors.torch.save_file(vit.state_dict(), folder / "model.safetensors")
    return folder / "model.safetensors"


def test_a_frozen_encoder_runs_once_over_all_shards(
    job: Job, preprocessed: list[str], published: Path, place: Path
) -> None:
    """By Ray Data; what every fold then trains is a head."""
    words = [*preprocessed, *ONE_WORKER, "store.results=frozen", "data.modalities=[video]"]
    words += [f"model.video.weights={published}"]
    words += ["train.encoders.video.encoder_lr_scale=0", "train.encoders.video.frozen_epochs=2"]
    first = job("train", *words)
    assert "1 frozen encoder once over 120 windows; 1 encoder training" in first.stdout
    assert "compute video features (windows)" in first.stderr
    (features,) = [p for p in (place / "frozen" / "features").iterdir() if p.is_dir()]
    parts = sorted(features.glob("shards/*.parquet"))
    assert sum(pd.read_parquet(part, columns=["window"]).shape[0] for part in parts) == 120
    # The checkpoint is whole.
    weights = safetensors.torch.load_file(Path(first.stdout.split("checkpoint: ")[1].split()[0]) / "model.safetensors")
    for name, tensor in safetensors.torch.load_file(published).items():
        assert torch.equal(weights[f"encoders.video.model.{name}"], tensor)


@pytest.mark.parametrize("way", WAYS)
def test_training_runs_every_encoder_on_every_rank(job: Job, preprocessed: list[str], way: str) -> None:
    """What a fusion does not use is said at the end."""
    done = job("train", *preprocessed, "optim.epochs=1", *WAYS[way])
    assert "checkpoint: " in done.stdout
    one_key = "fusion.kind=single_token" in WAYS[way]
    assert ("warning: the attention of this fusion sees 1 key" in done.stdout) == one_key
    assert ("warning: queries and keys get no gradient" in done.stdout) == one_key

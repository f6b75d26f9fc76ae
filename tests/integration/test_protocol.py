"""A whole protocol is one job: all folds are trained, every test recording scored once, a failed fold made up for.
So is its ablation, for which only what is new is trained."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from eav_ray.config import load_experiment, parse_changes
from eav_ray.data.shards.dataset import open_dataset
from eav_ray.errors import DataError
from eav_ray.pipelines.evaluate.ablation import run_ablation
from eav_ray.pipelines.evaluate.evaluate import evaluate_cross_validation
from eav_ray.pipelines.train.cross_validation import cross_validate, plan_cv_folds
from eav_ray.storage import Store
from eav_ray.training.checkpoint import find_finished_checkpoint
from eav_ray.training.embeddings import build_embedding_key
from tests.helpers.clusters import ONE_WORKER, PATIENCE_S, Job, end_process
from tests.helpers.paths import REPOSITORY, TINY
from tests.helpers.reliability import IN_CHAOS

pytestmark = pytest.mark.ray
CHANGES = ["split.protocol=within", "data.modalities=[audio,eeg]", "model.audio.kind=mfcc", "model.eeg.kind=bandpower"]
CHANGES += ONE_WORKER
SOURCES = ["audio", "eeg", "mean_probability", "product", "fusion"]


def table_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    lines = done.stdout.splitlines()
    return lines[next(n for n, line in enumerate(lines) if line.startswith("within, ")) :]


def files_of(folder: Path) -> dict[Path, int]:
    """List when each file was written, but for locks, which are taken anew each time."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != "lock"}


def places_of(preprocessed: list[str], place: Path, results: Path) -> list[str]:
    places = [*preprocessed[1:], f"store.results={results}"]
    return places + [f"store.{n}={place / folder}" for n, folder in (("shards", "data/shards"), ("cache", "cache"))]


@dataclass(frozen=True)
class Continued:
    """A protocol of which one fold failed at first."""

    results: Path
    places: list[str]
    encoder: str  # key of the run that failed
    part: subprocess.CompletedProcess[str]
    before: dict[Path, int]  # evaluations of the part
    whole: subprocess.CompletedProcess[str]
    after: dict[Path, int]


@pytest.fixture(scope="module")
def continued(job: Job, preprocessed: list[str], place: Path, tmp_path_factory: pytest.TempPathFactory) -> Continued:
    results = tmp_path_factory.mktemp("protocol")
    places = places_of(preprocessed, place, results)
    # An encoder of fold 1 cannot write its embeddings: what needs them fails, the other folds are trained and scored.
    experiment = load_experiment(TINY, parse_changes([*places, *CHANGES]))
    encoder = plan_cv_folds(experiment, open_dataset(experiment))[1].runs[0]
    obstacle = results / build_embedding_key(encoder.key, encoder.embedded_recordings)
    obstacle.parent.mkdir()
    obstacle.touch()
    part = job("protocol", TINY, *places, *CHANGES, expect=1)
    before = files_of(results / "evaluations")
    obstacle.unlink()
    whole = job("protocol", TINY, *places, *CHANGES)
    return Continued(results, places, encoder.key, part, before, whole, files_of(results / "evaluations"))


@dataclass(frozen=True)
class Ablated:
    done: subprocess.CompletedProcess[str]
    new: int  # trainings


@pytest.fixture(scope="module")
def ablated(job: Job, continued: Continued) -> Ablated:
    runs = continued.results / "runs"
    before = set(runs.iterdir())
    done = job("ablate", TINY, *continued.places, *CHANGES, "--parts", "subsets,positions")
    return Ablated(done, len(set(runs.iterdir()) - before))


def test_a_protocol_is_one_job_that_continues(job: Job, continued: Continued) -> None:
    results, places, part = continued.results, continued.places, continued.part
    assert "to do: 6 encoder trainings, 3 fusion trainings" in part.stdout
    table = table_of(part)
    assert table[0].startswith("within, 2 of 3 folds: accuracy in percent, 10 recordings of 2 people")
    assert (
        table[-1].startswith("1 of 3 folds could not be trained or scored: 1 (subject2)")
        and continued.encoder in table[-1]
    )
    assert [line.split()[1] for line in table[-3:-1]] == ["subject1", "subject3"]

    # The same command makes up for that fold, and for nothing else.
    table = table_of(continued.whole)
    assert table[0].startswith("within, 3 of 3 folds: accuracy in percent, 15 recordings of 3 people")
    assert len(continued.after) == 3 and continued.before.items() < continued.after.items()
    (kept,) = (results / "protocols").iterdir()
    assert table[-1] == f"predictions: {kept}"
    predictions = pd.read_parquet(kept / "predictions.parquet")
    folds = json.loads((kept / "folds.json").read_text())["folds"]
    assert not predictions.duplicated(["subject", "recording", "window"]).any()
    assert set(predictions["subject"] + "/" + predictions["recording"]) == {i for f in folds for i in f["test"]}
    assert predictions.groupby("fold")["subject"].unique().map(list).to_dict() == {
        n: [f"subject{n + 1}"] for n in range(3)
    }

    # Given once more, it trains and scores nothing and says the same.
    written = files_of(results)
    again = cross_validate(load_experiment(TINY, parse_changes([*places, *CHANGES])))
    assert again.text.splitlines() == table and files_of(results) == written

    # Fold 1 alone, scored anew, has the numbers of the table.
    shutil.rmtree(results / "evaluations")
    path = str(results / folds[1]["checkpoint"])
    alone = job("evaluate", TINY, *places, *CHANGES, "--checkpoint", path).stdout.splitlines()
    words = [line.split() for line in alone]
    means = [next(row[1] for row in words if row[:1] == [source]) for source in SOURCES]
    (mine,) = [line.split() for line in table if line.split()[:2] == ["1", "subject2"]]
    assert mine[2:] == means
    expected = predictions[predictions["fold"] == 1].drop(columns="fold").reset_index(drop=True)
    tables = [pd.read_parquet(path) for path in (results / "evaluations").iterdir()]
    (anew,) = [t for t in tables if set(t["recording"]) == set(expected["recording"])]
    pd.testing.assert_frame_equal(anew, expected, rtol=1e-4, atol=1e-5)


def test_an_ablation_trains_what_is_new_and_compares_all_folds(continued: Continued, ablated: Ablated) -> None:
    results, done = continued.results, ablated.done
    assert "to do: 3 fusion trainings (9 trainings finished earlier)" in done.stdout
    assert ablated.new == 3
    (kept,) = (p for p in (results / "ablations").iterdir() if p.is_dir())
    tree = json.loads((kept / "results.json").read_text())
    assert done.stdout.splitlines()[-1] == f"results: {kept}"
    assert tree["groups"] == dict.fromkeys(("subsets", "positions"), {"n_subjects": 3, "recordings": 15})
    names = {v["name"] for v in tree["variants"]}
    alone = {"audio", "eeg"}
    assert names == {"unchanged", "no time encodings", *alone, *(f"{m} (others masked)" for m in alone)}
    assert all(v["cost"]["gmac"] > 0 and v["cost"]["p95_ms"] >= v["cost"]["latency_ms"] > 0 for v in tree["variants"])

    # The experiment itself is the protocol that was trained before, and an encoder alone is the one under its fusion.
    protocol = pd.read_parquet(next((results / "protocols").iterdir()) / "predictions.parquet")
    mine = pd.read_parquet(kept / "predictions.parquet")
    ids, logits = ["subject", "recording", "window"], [f"logit_{k}" for k in range(5)]
    for variant, source in (("unchanged", "fusion"), ("audio", "audio"), ("eeg", "eeg")):
        both = mine[mine["variant"] == variant].merge(protocol, on=ids, suffixes=("", ".protocol"))
        assert len(both) == len(protocol)
        theirs = [f"{source}.{c}" + (".protocol" if source == "fusion" else "") for c in logits]
        ours = both[[f"fusion.{c}" for c in logits]].to_numpy()
        np.testing.assert_allclose(ours, both[theirs].to_numpy(), rtol=1e-4, atol=1e-5)
    masked = mine[mine["variant"] == "eeg (others masked)"]
    assert (masked["weight.audio"] == 0).all() and len(masked) == len(protocol)

    # Given once more, it trains, scores and measures nothing and says the same.
    written = files_of(results)
    again = run_ablation(load_experiment(TINY, parse_changes([*continued.places, *CHANGES])), ["subsets", "positions"])
    assert again.results == tree and done.stdout.endswith(again.text + "\n") and files_of(results) == written


@pytest.mark.usefixtures("ablated")
def test_a_page_has_every_fold_audited_and_the_ablation(job: Job, continued: Continued, tmp_path: Path) -> None:
    words = [TINY, *continued.places, *CHANGES]
    table = table_of(continued.whole)
    assert job("evaluate", *words, "--out", str(tmp_path)).stdout.splitlines()[: len(table)] == table
    tree = json.loads((tmp_path / "results.json").read_text())
    folds = json.loads(next((continued.results / "protocols").iterdir()).joinpath("folds.json").read_text())["folds"]
    checks = tree["audit"]["checks"]
    assert len(checks) == 3 * (10 + len(tree["modalities"])) and tree["audit"]["outcomes"]["failed"] == 0
    assert {c["outcome"] for c in checks if c["name"] == "origin of searched values"} == {"cannot tell"}
    assert [f["run"] for f in tree["folds"]] == [f["run"] for f in folds]
    assert tree["accuracy"]["recordings"] == 15 and len(tree["subjects"]) == 3
    assert [row["protocol"] for row in tree["protocols"]["rows"]] == ["paper", "within"]  # which divide alike
    assert tree["generalization_gap"]["fusion"]["recordings"] == sum(10 - len(f["test"]) for f in folds)
    assert tree["ablation"]["groups"] and "Accuracy against cost" in (tmp_path / "index.html").read_text()
    other = load_experiment(TINY, parse_changes([*continued.places, *CHANGES, "split.protocol=loso"]))
    with pytest.raises(DataError, match="has no finished protocol loso"):
        evaluate_cross_validation(other, searched=False, out="")


@IN_CHAOS
def test_a_protocol_whose_head_and_driver_are_lost_ends_on_a_new_head_as_if_it_had_not_been(
    job: Job,
    continued: Continued,
    preprocessed: list[str],
    place: Path,
    job_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    words = [str(TINY), *places_of(preprocessed, place, tmp_path), *CHANGES]
    command = [sys.executable, str(REPOSITORY / "jobs" / "protocol.py"), *words]
    lost = subprocess.Popen(command, cwd=place, env=job_environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        results = Store(tmp_path)
        for _ in range(10 * PATIENCE_S):
            finished = {k for k in results.list_folders("runs") if find_finished_checkpoint(results, k)}
            if finished:
                break
            assert lost.poll() is None, lost.communicate()
            time.sleep(0.1)
    finally:
        end_process(lost)  # and the Ray that it had started: its head, and all workers
    written = {key: files_of(tmp_path / "runs" / key) for key in finished}
    job("protocol", *words)
    expected = Store(continued.results)
    assert len(finished) < len(results.list_folders("runs")) == 9
    for key in results.list_folders("runs"):
        theirs, ours = (find_finished_checkpoint(store, key) for store in (expected, results))
        assert theirs and ours and ours.weights.keys() == theirs.weights.keys()
        for name, tensor in theirs.weights.items():
            assert torch.equal(tensor, ours.weights[name]), (key, name)
    for key, files in written.items():  # which was not trained again
        assert files.items() <= files_of(tmp_path / "runs" / key).items()
    theirs, ours = (
        pd.read_parquet(next((r / "protocols").iterdir()) / "predictions.parquet")
        for r in (continued.results, tmp_path)
    )
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


def test_each_fold_has_a_search_of_its_own(job: Job, preprocessed: list[str], place: Path, tmp_path: Path) -> None:
    words = [TINY, *places_of(preprocessed, place, tmp_path), *CHANGES, "split.protocol=subject_kfold", "--search"]
    done = job("protocol", *words)
    assert "12 encoder trainings" in done.stdout and "12 fusion trainings of the search" in done.stdout
    assert "3 fusion trainings of the refit" in done.stdout
    lines = done.stdout.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("search: chosen by"))
    folds = json.loads(next((tmp_path / "protocols").iterdir()).joinpath("folds.json").read_text())["folds"]
    for fold, line in zip(folds, lines[start + 2 : start + 5], strict=True):
        folder = tmp_path / "searches" / fold["search"]["study"]
        best = json.loads((folder / "best.json").read_text())
        assert (best["checkpoint"], best["value"]) == (fold["checkpoint"], fold["search"]["inner_score"])
        assert line.split()[:2] == [str(fold["fold"]), f"{100 * best['value']:.2f}"]
        assert (folder / "search.html").stat().st_size > 10_000
        split = json.loads((tmp_path / fold["checkpoint"] / "split.json").read_text())
        assert not set(split["train"]) & set(fold["test"]) and not split["validation"]
    before = files_of(tmp_path)
    assert job("protocol", *words).stdout.splitlines() == lines[start - len(table_of_search(lines)) + 1 :]
    assert files_of(tmp_path) == before


def table_of_search(lines: list[str]) -> list[str]:
    """From the head of the table to the line of the search."""
    start = next(n for n, line in enumerate(lines) if line.startswith("subject_kfold, "))
    end = next(n for n, line in enumerate(lines) if line.startswith("search: chosen by"))
    return lines[start : end + 1]

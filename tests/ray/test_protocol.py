"""A whole protocol is one job: all folds are trained, every test recording scored once, a failed fold made up for."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from eav_ray.config import load, parse_changes
from eav_ray.runtime.protocol import plan, run_protocol
from eav_ray.runtime.train import open_data
from eav_ray.training.embeddings import cache_key

Job = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.ray
TINY = str(Path(__file__).with_name("tiny.yaml"))
CHANGES = ["fold.protocol=within", "data.modalities=[audio,eeg]", "model.audio.kind=mfcc", "model.eeg.kind=bandpower"]
CHANGES += ["runtime.engine=torch", "runtime.workers=1"]  # which start soonest
SOURCES = ["audio", "eeg", "late_mean", "fusion"]


def table_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    lines = done.stdout.splitlines()
    return lines[next(n for n, line in enumerate(lines) if line.startswith("within, ")) :]


def files_of(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_a_protocol_is_one_job_that_continues(job: Job, preprocessed: list[str], place: Path, tmp_path: Path) -> None:
    places = [*preprocessed[1:], f"store.results={tmp_path}"]
    places += [f"store.{name}={place / folder}" for name, folder in (("shards", "data/shards"), ("cache", "cache"))]

    # An encoder of fold 1 cannot write its embeddings: what needs them fails, the other folds are trained and scored.
    experiment = load(TINY, parse_changes([*places, *CHANGES]))
    encoder = plan(experiment, open_data(experiment))[1].runs[0]
    obstacle = tmp_path / cache_key(encoder.key, encoder.embed)
    obstacle.parent.mkdir()
    obstacle.touch()
    part = job("protocol", TINY, *places, *CHANGES, expect=1)
    assert "to do: 6 encoder trainings, 3 fusion or joint trainings" in part.stdout
    table = table_of(part)
    assert table[0].startswith("within, 2 of 3 folds: accuracy in percent, 10 recordings of 2 people")
    assert (
        table[-1].startswith("1 of 3 folds could not be trained or scored: 1 (subject2)") and encoder.key in table[-1]
    )
    assert [line.split()[1] for line in table[-3:-1]] == ["subject1", "subject3"]

    # The same command makes up for that fold, and for nothing else.
    before = files_of(tmp_path / "evaluations")
    obstacle.unlink()
    whole = job("protocol", TINY, *places, *CHANGES)
    table = table_of(whole)
    assert table[0].startswith("within, 3 of 3 folds: accuracy in percent, 15 recordings of 3 people")
    after = files_of(tmp_path / "evaluations")
    assert len(after) == 3 and before.items() < after.items()
    (kept,) = (tmp_path / "protocols").iterdir()
    assert table[-1] == f"predictions: {kept}"
    predictions = pd.read_parquet(kept / "predictions.parquet")
    folds = json.loads((kept / "folds.json").read_text())
    assert not predictions.duplicated(["subject", "recording", "window"]).any()
    assert set(predictions["subject"] + "/" + predictions["recording"]) == {i for f in folds for i in f["test"]}
    assert predictions.groupby("fold")["subject"].unique().map(list).to_dict() == {
        n: [f"subject{n + 1}"] for n in range(3)
    }

    # Given once more, it trains and scores nothing and says the same.
    written = files_of(tmp_path)
    again = run_protocol(experiment)
    assert again.text.splitlines() == table and files_of(tmp_path) == written

    # Fold 1 alone, scored anew, has the numbers of the table.
    shutil.rmtree(tmp_path / "evaluations")
    path = str(tmp_path / folds[1]["checkpoint"])
    alone = job("evaluate", TINY, *places, *CHANGES, "--checkpoint", path).stdout.splitlines()
    means = [line.split()[1] for source in SOURCES for line in alone if line.startswith(f"{source:12}")]
    (mine,) = [line.split() for line in table if line.split()[:2] == ["1", "subject2"]]
    assert mine[2:] == means
    expected = predictions[predictions["fold"] == 1].drop(columns="fold").reset_index(drop=True)
    tables = [pd.read_parquet(path) for path in (tmp_path / "evaluations").iterdir()]
    (anew,) = [t for t in tables if set(t["recording"]) == set(expected["recording"])]
    pd.testing.assert_frame_equal(anew, expected, rtol=1e-4, atol=1e-5)

    # The page of the whole protocol has every fold, audited, and the protocol beside those that were not run.
    told = job("evaluate", TINY, *places, *CHANGES, "--out", str(tmp_path / "page")).stdout
    assert told.splitlines()[: len(table)] == table
    results = json.loads((tmp_path / "page" / "results.json").read_text())
    assert len(results["audit"]["checks"]) == 3 * 6 and all(c["passed"] for c in results["audit"]["checks"])
    assert [f["run"] for f in results["folds"]] == [f["run"] for f in folds]
    assert results["accuracy"]["recordings"] == 15 and len(results["people"]) == 3
    assert [row["protocol"] for row in results["protocols"]["rows"]] == ["within"]
    assert results["gap"]["fusion"]["recordings"] == sum(10 - len(f["test"]) for f in folds)
    refused = job("evaluate", TINY, *places, *CHANGES, "fold.protocol=paper", "--search", expect=2)
    assert "has no rows to choose on" in refused.stderr
    refused = job("evaluate", TINY, *places, *CHANGES, "fold.protocol=loso", expect=2)
    assert "has no finished protocol loso" in refused.stderr


def test_each_fold_has_a_search_of_its_own(job: Job, preprocessed: list[str], place: Path, tmp_path: Path) -> None:
    places = [*preprocessed[1:], f"store.results={tmp_path}"]
    places += [f"store.{name}={place / folder}" for name, folder in (("shards", "data/shards"), ("cache", "cache"))]
    words = [TINY, *places, *CHANGES, "fold.protocol=subject_kfold", "--search"]
    done = job("protocol", *words)
    assert "12 encoder trainings" in done.stdout and "12 fusion trainings of the search" in done.stdout
    assert "3 fusion trainings of the refit" in done.stdout
    lines = done.stdout.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("search: chosen by"))
    folds = json.loads(next((tmp_path / "protocols").iterdir()).joinpath("folds.json").read_text())
    for fold, line in zip(folds, lines[start + 2 : start + 5], strict=True):
        folder = tmp_path / "searches" / fold["search"]["study"]
        best = json.loads((folder / "best.json").read_text())
        assert (best["checkpoint"], best["value"]) == (fold["checkpoint"], fold["search"]["inner"])
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

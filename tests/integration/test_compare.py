"""A comparison of encoders goes on where it was stopped, trains nothing twice, and scores as the protocol does."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from eav_ray.config import load_experiment, parse_changes
from eav_ray.pipelines.evaluate.compare import compare_encoders
from eav_ray.storage import Store
from eav_ray.training.checkpoint import find_finished_checkpoint
from eav_ray.training.metrics import compute_scores
from tests.helpers.clusters import PATIENCE_S, Job, end_process
from tests.helpers.paths import REPOSITORY, TINY

pytestmark = pytest.mark.ray
CHANGES = ["data.modalities=[eeg,audio]", "runtime.engine=torch", "runtime.workers=1"]
ENCODERS = """
- bandpower
- {name: EEGNet, model.eeg: {kind: braindecode, name: EEGNet, settings: {F1: 4}}, train.encoders.eeg: {epochs: 40}}
"""


def list_written(folder: Path) -> dict[Path, int]:
    """List when each file was written, but for locks, which are taken anew each time."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != "lock"}


def stop_after_first_training(words: list[str], place: Path, results: Path, environment: dict[str, str]) -> set[str]:
    """Start a comparison, tell it to end when a training is finished, and return the trainings that then are."""
    command = [sys.executable, str(REPOSITORY / "jobs" / "compare.py"), *words]
    process = subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    store = Store(results)
    try:
        for _ in range(10 * PATIENCE_S):
            if any(find_finished_checkpoint(store, key) for key in store.list_folders("runs")):
                break
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 130 and "Traceback" not in printed, printed
    finally:
        end_process(process)
    return {key for key in store.list_folders("runs") if find_finished_checkpoint(store, key)}


def test_a_comparison_goes_on_and_scores_as_the_protocol_does(
    job: Job, preprocessed: list[str], place: Path, job_environment: dict[str, str], tmp_path: Path
) -> None:
    results = tmp_path / "results"
    stores = [f"store.{n}={place / folder}" for n, folder in (("shards", "data/shards"), ("cache", "cache"))]
    words = [str(TINY), *preprocessed[1:], *stores, f"store.results={results}", *CHANGES]
    encoders = tmp_path / "encoders.yaml"
    encoders.write_text(ENCODERS)
    options = ["--encoders", str(encoders), "--baselines", "logistic"]
    finished = stop_after_first_training([*words, *options], place, results, job_environment)
    assert 0 < len(finished) < 6
    written = {key: list_written(results / "runs" / key) for key in finished}

    done = job("compare", *words, *options)
    assert f"{len(finished)} training{'s' if len(finished) > 1 else ''} finished earlier" in done.stdout
    for key, files in written.items():
        assert files.items() <= list_written(results / "runs" / key).items()
    (folder,) = (p for p in (results / "comparisons").iterdir() if p.is_dir())
    assert done.stdout.splitlines()[-1] == f"results: {folder}"
    scores = pd.read_csv(folder / "encoders.csv", dtype={"subject": str})
    assert list(scores)[:4] == ["model", "seed", "subject", "score"]
    baseline = scores["model"].iloc[-1]
    assert baseline.startswith("logistic regression on ")
    assert scores.groupby("model").size().to_dict() == dict.fromkeys(["EEGNet", "bandpower", baseline], 3)
    tree = json.loads((folder / "encoders.json").read_text())
    (block,) = tree["blocks"]
    assert [row["model"] for row in block["rows"]][:2] == ["bandpower", "EEGNet"] and block["reference"] == "bandpower"
    cost = block["rows"][1]["cost"]
    assert min(cost["parameters"], cost["gmac"], cost["seconds"], cost["latency_ms"]) > 0
    assert "Encoders of EEG" in (folder / "encoders.html").read_text()

    # Given once more, it trains, scores and measures nothing and says the same.
    before = list_written(results)
    again = compare_encoders(load_experiment(TINY, parse_changes(words[1:])), str(encoders), baselines=["logistic"])
    assert again.results == tree and done.stdout.endswith(again.text + "\n") and list_written(results) == before

    # An encoder more is all that is trained.
    more = job("compare", *words, "--encoders", "bandpower,mfcc", "--baselines", "none")
    assert "to do: 3 encoder trainings (3 trainings finished earlier)" in more.stdout
    assert [line.split(":")[0] for line in more.stdout.splitlines() if " of 3 people, " in line] == ["Audio", "EEG"]

    # The protocol of one of them trains nothing, and its recordings are scored alike.
    alone = [*words, "data.modalities=[eeg]", "model.eeg.kind=bandpower"]
    assert "nothing to do: 3 trainings finished earlier" in job("protocol", *alone).stdout
    (kept,) = (results / "protocols").iterdir()
    predictions = pd.read_parquet(kept / "predictions.parquet")
    subjects = predictions.groupby("subject")
    expected = {str(s): compute_scores(own, "fusion")["recording_balanced_accuracy"] for s, own in subjects}
    own = scores[scores["model"] == "bandpower"]
    assert dict(zip(own["subject"], own["score"], strict=True)) == pytest.approx(expected)

    # What cannot be trained is refused before anything is.
    before = list_written(results)
    refused = job("compare", *words, "--encoders", "mfcc,braindecode:NoSuch", expect=2)
    assert refused.stderr.startswith('error: the encoder "braindecode:NoSuch" cannot be compared: ')
    assert list_written(results) == before

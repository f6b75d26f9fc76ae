"""Real speech and real EEG go through the same jobs: preprocess, train, evaluate on people held out."""

from pathlib import Path

import pytest

from tests.helpers.clusters import Job
from tests.helpers.paths import EXPERIMENTS

pytestmark = [pytest.mark.ray, pytest.mark.real]

CASES = {
    "ravdess": ["data.subjects=[actor01,actor02]", "train.encoders.audio.epochs=1"],
    "eegmat": ["data.subjects=[subject00,subject01]", "train.encoders.eeg.epochs=1"],
}


@pytest.mark.parametrize("name", CASES)
def test_a_real_data_set_is_trained_on_and_tested(name: str, job: Job, real: Path, tmp_path: Path) -> None:
    words = [str(EXPERIMENTS / f"{name}.yaml"), f"data.root={real / name}", "split.n_folds=2", *CASES[name]]
    words += [f"store.{k}={tmp_path / k}" for k in ("shards", "results", "cache")]
    prepared = job("preprocess", *words)
    assert "\n0 recordings or files set aside" in prepared.stdout
    trained = job("train", *words)
    path = trained.stdout.split("checkpoint: ")[1].strip()
    tested = job("evaluate", *words, "--checkpoint", path)
    assert "of 1 people" in tested.stdout and "chance" in tested.stdout

"""Real speech and real EEG go through the same jobs: preprocess, train, evaluate on people held out."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.helpers.clusters import ONE_WORKER, Job
from tests.helpers.paths import EXPERIMENTS

pytestmark = [pytest.mark.ray, pytest.mark.real]

CASES = {
    "ravdess": ["data.subjects=[actor01,actor02]", "train.encoders.audio.epochs=1"],
    "eegmat": ["data.subjects=[subject00,subject01]", "train.encoders.eeg.epochs=1"],
}


@pytest.mark.parametrize("name", CASES)
def test_a_real_data_set_is_trained_on_and_tested(name: str, job: Job, real: Path, tmp_path: Path) -> None:
    words = [str(EXPERIMENTS / f"{name}.yaml"), f"data.root={real / name}", "split.n_folds=2", *CASES[name]]
    words += [*ONE_WORKER, *(f"store.{k}={tmp_path / k}" for k in ("shards", "results", "cache"))]
    prepared = job("preprocess", *words)
    assert "\n0 recordings or files set aside" in prepared.stdout
    trained = job("train", *words)
    path = trained.stdout.split("checkpoint: ")[1].split()[0]
    tested = job("evaluate", *words, "--checkpoint", path)
    assert "of 1 person" in tested.stdout and "chance" in tested.stdout
    if name == "ravdess":  # which normalises within people: measured as they are, and then corrupted
        places = [f"data.root={real / name}", "--out", str(tmp_path / "corrupted")]
        job("robustness", path, *places, "--corruptions", "gaussian", "--severity-levels", "1")
        (found,) = (tmp_path / "corrupted" / "robustness").iterdir()
        clean, noisy = (pd.read_parquet(found / f"{each}.parquet") for each in ("clean", "audio.gaussian.1"))
        job(
            "predict",
            path,
            *places[:1],
            "data.subjects=[actor01,actor02]",
            "--out",
            str(tmp_path / "predicted.parquet"),
        )
        windows = pd.read_parquet(next(p for p in tmp_path.glob("predicted*") if p.name != "predicted.parquet"))
        both = clean.merge(windows, on=["subject", "recording", "window"], suffixes=("", ".predicted"))
        first = next(column for column in windows if column.startswith("logit."))  # of the first class
        assert len(both) == len(clean) == len(noisy)
        np.testing.assert_allclose(both["fusion.logit_0"], both[first], rtol=1e-4, atol=1e-5)
        assert not np.allclose(noisy["fusion.logit_0"], clean["fusion.logit_0"], atol=1e-2)

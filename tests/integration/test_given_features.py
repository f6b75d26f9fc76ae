"""Features that others have computed go through the same jobs, normalised within people as the access level allows."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import eav_ray
from eav_ray.config import load_experiment, to_dict
from tests.helpers.clusters import Job
from tests.helpers.given_features import COLUMNS, N_RECORDINGS, write_tables

pytestmark = pytest.mark.ray


def test_they_are_trained_on_predicted_and_held_against_baselines(job: Job, tmp_path: Path) -> None:
    changes = write_tables(tmp_path / "data") | {"split.access": "unlabelled_block", "split.n_folds": 2}
    changes |= {"model.face.subject_normalisation": "standardise"}
    experiment = tmp_path / "faces.yaml"
    experiment.write_text(yaml.safe_dump(to_dict(load_experiment("fusion", changes)) | {"name": "faces"}))
    job("preprocess", str(experiment))
    done = job("protocol", str(experiment))
    head = next(line for line in done.stdout.splitlines() if line.startswith("subject_kfold, 2 of 2 folds"))
    assert head.endswith("access to them unlabelled_block")
    base = job("baseline", str(experiment))
    assert "logistic regression" in base.stdout.lower()
    page = tmp_path / "page"
    job("evaluate", str(experiment), "--out", str(page))
    results = json.loads((page / "results.json").read_text())
    assert results["access"]["level"] == "unlabelled_block" and results["baselines"]
    assert {c["outcome"] for c in results["audit"]["checks"] if c["name"] == "access to tested subjects"} == {"passed"}
    assert results["accuracy"]["sources"]["face"]["mean"] > 0.9
    assert "unlabelled_block" in (page / "index.html").read_text()

    # Recordings of the first fold's people, measured and predicted, give what the protocol gave.
    fold = results["folds"][0]
    subjects = sorted({r.split("/")[0] for r in fold["test"]})
    out = tmp_path / "predicted.parquet"
    words = [fold["checkpoint"], f"data.subjects=[{','.join(subjects)}]", "--out", str(out)]
    job("predict", *words)
    predicted = pd.read_parquet(out)
    assert len(predicted) == N_RECORDINGS * len(subjects)
    assert (predicted["predicted"] == predicted["label"]).mean() > 0.9
    kept = pd.read_parquet(next((tmp_path / "data" / "results" / "protocols").iterdir()) / "predictions.parquet")
    windows = pd.read_parquet(next(p for p in tmp_path.glob("predicted*") if p != out))
    both = windows.merge(kept, on=["subject", "recording", "window"], suffixes=("", ".protocol"))
    assert len(both) == len(windows)
    logits = [column for column in windows if column.startswith("logit.")]  # in the order of the classes
    assert len(logits) == 2
    for k, column in enumerate(logits):
        ours, theirs = both[column], both[f"fusion.logit_{k}"]
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)

    # Measured by hand, the same people get the same predictions.
    predictor = eav_ray.Predictor(fold["checkpoint"], device="cpu")
    table = pd.read_csv(tmp_path / "data" / "faces.csv").set_index("clip")[list(COLUMNS)]
    recordings = [each for each in table.index if each.startswith(f"{subjects[0]}/")]
    assert predictor.measure_subject([{"features": {"face": table.loc[r].to_numpy()}} for r in recordings]) == len(
        recordings
    )
    for r in recordings:
        expected = predicted[predicted["subject"].eq(subjects[0]) & predicted["recording"].eq(r.split("/")[1])]
        found = predictor.predict(features={"face": table.loc[r].to_numpy()})
        assert found.predicted == expected["predicted"].item()

"""Ratings, numbers in place of classes, go through the same jobs: protocol, search, page, prediction."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import eav_ray
from eav_ray.config import load_experiment, to_dict
from eav_ray.training.number_scores import compute_ccc
from tests.helpers.clusters import Job
from tests.helpers.rated_features import COLUMNS, N_RECORDINGS, TARGETS, write_rated_tables

pytestmark = pytest.mark.ray
SEARCH = {
    "search.candidates": 3,
    "search.space": {"optim.lr": {"choice": [1e-6, 3e-3, 1e-2]}, "fusion.kind": {"choice": ["shared_attention"]}},
}


@pytest.fixture(scope="module")
def experiment(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of one whose tables are preprocessed; they and all that comes of them lie in `data` beside it."""
    folder = tmp_path_factory.mktemp("rated")
    file = folder / "rated.yaml"
    changes = write_rated_tables(folder / "data") | SEARCH
    file.write_text(yaml.safe_dump(to_dict(load_experiment("fusion", changes)) | {"name": "rated"}))
    assert "arousal mean" in job("preprocess", str(file)).stdout
    return file


def test_ratings_are_predicted_in_their_own_units(job: Job, experiment: Path, tmp_path: Path) -> None:
    data = experiment.parent / "data"
    done = job("protocol", str(experiment))
    assert "valence, within people: CCC, Pearson and RMSE" in done.stdout
    baselines = job("baseline", str(experiment)).stdout
    assert "ridge regression on given features (face)" in baselines and "mean of the training targets" in baselines
    page = tmp_path / "page"
    job("evaluate", str(experiment), "--out", str(page))
    results = json.loads((page / "results.json").read_text())
    kept = pd.read_parquet(next((data / "results" / "protocols").iterdir()) / "predictions.parquet")
    for k, (target, modality, other) in enumerate((("valence", "face", "voice"), ("arousal", "voice", "face"))):
        sources = results["scores"]["targets"][target]["sources"]
        found = {s: sources[s]["within"]["ccc"]["mean"] for s in (modality, other, "mean", "fusion")}
        # What one modality knows, and the other does not, is in the fusion, and halved by the mean.
        assert found[modality] > 0.9 and found["fusion"] > 0.8 and abs(found[other]) < 0.3
        assert found["mean"] < found["fusion"] and sources["constant"]["within"]["ccc"]["mean"] == 0
        # By hand, of what the store keeps.
        own = [
            compute_ccc(rows[f"fusion.value_{k}"].to_numpy(), rows[f"target_{k}"].to_numpy())
            for _, rows in kept.groupby("subject")
        ]
        assert found["fusion"] == pytest.approx(np.mean(own))
    table = pd.read_csv(data / "recordings.csv").set_index(["subject", "recording"])
    by_id = kept.set_index(["subject", "recording"])
    for k, target in enumerate(TARGETS):
        assert by_id[f"target_{k}"].equals(table[target].reindex(by_id.index).rename(f"target_{k}"))

    fold = results["folds"][0]
    subjects = sorted({r.split("/")[0] for r in fold["test"]})
    new = tmp_path / "new.csv"
    table.reset_index()[["subject", "recording"]].to_csv(new, index=False)
    out = tmp_path / "predicted.csv"
    job("predict", fold["checkpoint"], f"data.root={new}", f"data.subjects=[{','.join(subjects)}]", "--out", str(out))
    predicted = pd.read_csv(out)
    assert len(predicted) == N_RECORDINGS * len(subjects) and predicted[list(TARGETS)].isna().all(axis=None)
    assert ",," in out.read_text().splitlines()[1]  # what nobody knows is empty
    both = predicted.merge(kept, on=["subject", "recording"])
    for k, target in enumerate(TARGETS):
        np.testing.assert_allclose(both[f"predicted.{target}"], both[f"fusion.value_{k}"], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(both[f"face.predicted.{target}"], both[f"face.value_{k}"], rtol=1e-4, atol=1e-4)

    predictor = eav_ray.Predictor(fold["checkpoint"], device="cpu")
    assert (predictor.classes, predictor.targets) == ((), TARGETS)
    first = predicted.iloc[0]
    features = {
        m: pd.read_csv(data / f"{m}.csv").set_index("clip").loc[f"{first['subject']}/{first['recording']}"].to_numpy()
        for m in COLUMNS
    }
    found = predictor.predict(features=features)
    assert found.predicted is None and found.probabilities == {}
    assert found.values == pytest.approx({t: first[f"predicted.{t}"] for t in TARGETS}, rel=1e-4)
    assert predictor.predict(features={"face": features["face"]}).by_modality["voice"] == dict.fromkeys(TARGETS)


def test_a_search_chooses_by_the_ccc_of_inner_folds(job: Job, experiment: Path) -> None:
    data = experiment.parent / "data"
    done = job("search", str(experiment))
    rows = pd.read_parquet(next((data / "results" / "searches").glob("*/candidates.parquet")))
    assert rows["validation_score"].equals(rows["validation_recording_ccc"].rename("validation_score"))
    best = json.loads(next((data / "results" / "searches").glob("*/best.json")).read_text())
    assert best["metric"] == "validation_score" and best["changes"]["optim.lr"] > 1e-6
    assert best["value"] == pytest.approx(rows.groupby("candidate")["validation_score"].mean().max())
    page = next((data / "results" / "searches").glob("*/*.html")).read_text()
    assert "mean CCC of recordings" in page and "balanced accuracy" not in page
    assert "inner score" in done.stdout

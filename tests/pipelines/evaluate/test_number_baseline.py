"""`eav baseline` of predicted numbers tests every fold once, is kept, and is held against a page's model."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from eav_ray.config import Experiment, load_experiment
from eav_ray.data.shards.index import ShardIndex
from eav_ray.data.splits import add_permutation_groups
from eav_ray.pipelines.evaluate import baseline
from eav_ray.pipelines.evaluate.baseline import collect_baselines, run_baselines
from eav_ray.storage import Store
from tests.helpers.given_features import COLUMNS, write_tables

SUBJECTS, RECORDINGS = 6, 8
TARGETS = ("valence", "arousal")


def make_dataset() -> Any:
    """Windows with a feature that knows the first target, and none that knows the second."""
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"p{s}/r{r}", "subject": f"p{s}", "recording": f"r{r}", "window": 0, "label": 0, "order": r}
        | {"task": "speaking", "has_face": True, "target_0": rng.normal(5, 2), "target_1": rng.normal(0, 1)}
        for s in range(SUBJECTS)
        for r in range(RECORDINGS)
    ]
    ids = add_permutation_groups(pd.DataFrame(rows))
    x = rng.normal(size=(len(ids), 1, len(COLUMNS))).astype(np.float32)
    x[:, 0, 0] += ids["target_0"].to_numpy()
    windows = SimpleNamespace(ids=ids, get=lambda rows, modality: x[rows])
    index = ShardIndex("k", (), ("face",), 0, (), {}, targets=TARGETS)
    return SimpleNamespace(index=index, windows=windows, digest="shards")


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return load_experiment("fusion", write_tables(tmp_path) | {"data.targets.columns": list(TARGETS)})


def test_baselines_of_numbers_are_kept_shown_and_compared(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset()
    monkeypatch.setattr(baseline, "open_dataset", lambda e: data)
    report = run_baselines(experiment)
    titles = ["constant: mean of the training targets", "SVR on given features (face)"]
    titles.append("ridge regression on given features (face)")
    assert [(row["target"], row["title"]) for row in report.rows] == [(t, title) for t in TARGETS for title in titles]
    scores = {(row["target"], row["source"]): row for row in report.rows}
    assert scores["valence", "ridge.face"]["ccc"] > 0.5 > scores["arousal", "ridge.face"]["ccc"]
    assert scores["valence", "constant"]["ccc"] == 0
    lines = report.text.splitlines()
    assert lines[0].startswith("subject_kfold, 3 folds: baselines, CCC, Pearson and RMSE, 48 recordings of 6 people")
    assert any(line.startswith("valence") and "ridge regression" in line for line in lines)
    again = run_baselines(experiment)
    assert again.rows == report.rows

    model = report.result.predictions[["subject", "recording", "window", "fold", "target_0", "target_1"]]
    model = model.assign(**{f"face.value_{k}": model[f"target_{k}"] for k in range(2)})
    skipped: list[str] = []
    found = collect_baselines(Store(experiment.store.results), experiment, data, model, skipped)
    assert found is not None and skipped == [] and len(found["rows"]) == 6
    assert [(one["target"], one["other"]) for one in found["comparisons"]] == [
        (t, s) for t in TARGETS for s in ("constant", "svr.face", "ridge.face")
    ]
    assert all(one["ours"] == "face" and one["difference"] > 0 for one in found["comparisons"])

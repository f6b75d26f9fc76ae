"""Baselines of numbers are what scikit-learn makes of training rows; no test row is in any fit or choice."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

from eav_ray.config import SplitConfig
from eav_ray.data.splits import LabeledRecording, make_inner_splits, make_split
from eav_ray.errors import ConfigError
from eav_ray.evaluation.baselines.folds import BaselineData, FoldResult, PlannedFold, predict_fold, predict_folds
from eav_ray.evaluation.baselines.inputs import Inputs, Source, list_baselines
from eav_ray.evaluation.baselines.number_folds import (
    compare_with_baselines,
    list_number_titles,
    summarize_number_baselines,
)

SUBJECTS, RECORDINGS, WINDOWS, FEATURES = 8, 6, 2, 4
LOSO = SplitConfig(protocol="loso", n_inner_folds=2, index=1)
SOURCES = [Source("svr", "face"), Source("ridge", "face"), Source("ridge", "voice")]
TARGETS = ("valence", "arousal")


def make_data() -> BaselineData:
    rng = np.random.default_rng(0)
    ids = pd.DataFrame(
        [
            {"subject": f"p{s}", "recording": f"{r:02d}", "id": f"p{s}/{r:02d}", "window": w, "order": r}
            for s in range(SUBJECTS)
            for r in range(RECORDINGS)
            for w in range(WINDOWS)
        ]
    )
    targets = np.repeat(rng.normal([50, -3], [20, 0.5], (SUBJECTS * RECORDINGS, 2)), WINDOWS, axis=0)
    standard = (targets - [50, -3]) / [20, 0.5]
    inputs = {
        m: Inputs(
            np.ones(len(ids), bool),
            standard @ rng.normal(size=(2, FEATURES)) + rng.normal(0, 0.5, (len(ids), FEATURES)),
            None,
        )
        for m in ("face", "voice")
    }
    return BaselineData(ids, np.zeros(len(ids), int), inputs, 0, targets)


def plan_fold(data: BaselineData, config: SplitConfig = LOSO) -> PlannedFold:
    first = data.ids.drop_duplicates("id")
    items = [
        LabeledRecording(i, s, 0, "speaking", int(o))
        for i, s, o in zip(first["id"], first["subject"], first["order"], strict=True)
    ]
    return PlannedFold(config.index, make_split(items, config), tuple(make_inner_splits(items, config)))


def predict(data: BaselineData, access: str = "source_only") -> FoldResult:
    return predict_fold(data, plan_fold(data), SOURCES, replace(LOSO, access=access))


def is_test(data: BaselineData) -> np.ndarray:
    return data.ids["id"].isin(plan_fold(data).split.test).to_numpy()


def test_a_baseline_is_scikit_learns_of_the_training_rows() -> None:
    data = make_data()
    found, test = predict(data), is_test(data)
    x, table = data.inputs["face"].features, found.predictions
    for k in range(2):
        y = data.targets[~test, k]
        standard = (y - y.mean()) / y.std()
        alpha = found.chosen["ridge.face"][k]["parameters"]["alpha"]
        ridge = make_pipeline(StandardScaler(), Ridge(alpha=alpha)).fit(x[~test], standard)
        np.testing.assert_allclose(table[f"ridge.face.value_{k}"], ridge.predict(x[test]) * y.std() + y.mean())
        chosen = found.chosen["svr.face"][k]["parameters"]
        scaled = StandardScaler().fit(x[~test])
        gamma = chosen["gamma_scale"] / (FEATURES * scaled.transform(x[~test]).var())
        svr = SVR(C=chosen["C"], gamma=gamma).fit(scaled.transform(x[~test]), standard)
        expected = svr.predict(scaled.transform(x[test])) * y.std() + y.mean()
        np.testing.assert_allclose(table[f"svr.face.value_{k}"], expected)
        np.testing.assert_array_equal(table[f"target_{k}"], data.targets[test, k])
        np.testing.assert_allclose(table[f"constant.value_{k}"], data.targets[~test, k].mean())
        kind = found.chosen["fused"][k]["face"]
        mean = (table[f"{kind}.face.value_{k}"] + table[f"ridge.voice.value_{k}"]) / 2
        np.testing.assert_allclose(table[f"fused.mean.value_{k}"], mean)


@pytest.mark.parametrize("access", ["source_only", "unlabelled_block"])
def test_targets_of_tested_people_change_nothing(access: str) -> None:
    data = make_data()
    turned = data.targets.copy()
    turned[is_test(data)] *= -1
    found, other = predict(data, access), predict(replace(data, targets=turned), access)
    assert found.chosen == other.chosen
    truth = ["target_0", "target_1"]
    pd.testing.assert_frame_equal(found.predictions.drop(columns=truth), other.predictions.drop(columns=truth))


def test_targets_and_features_that_are_missing() -> None:
    data = make_data()
    targets, present = data.targets.copy(), np.ones(len(data.ids), bool)
    targets[data.ids["recording"] == "02", 0] = np.nan
    present[data.ids["recording"] == "01"] = False
    inputs = data.inputs | {"voice": replace(data.inputs["voice"], present=present)}
    found = predict(replace(data, targets=targets, inputs=inputs))
    table = found.predictions
    without = (table["recording"] == "01").to_numpy()
    assert table["ridge.voice.value_1"].isna().to_numpy().tolist() == without.tolist()
    assert table.filter(regex="face|fused|constant").notna().all().all()
    face = table[f"{found.chosen['fused'][0]['face']}.face.value_0"]
    np.testing.assert_allclose(table["fused.mean.value_0"][without], face[without])


def test_without_inner_folds_parameters_are_the_defaults() -> None:
    data = make_data()
    fold = replace(plan_fold(data), inner=())
    chosen = predict_fold(data, fold, SOURCES, LOSO).chosen
    assert [one["parameters"] for one in chosen["ridge.face"]] == [{"alpha": 100.0}] * 2
    assert chosen["svr.face"][0]["inner_ccc"] is None and chosen["fused"][0] == {
        "target": 0,
        "face": "ridge",
        "voice": "ridge",
    }


def test_folds_are_scored_over_subjects_and_held_against_predictions() -> None:
    data = make_data()
    folds = [plan_fold(data, replace(LOSO, index=n)) for n in range(SUBJECTS)]
    found = list(predict_folds(data, folds, SOURCES, LOSO, 1))
    table = pd.concat([one.predictions for one in found], ignore_index=True)
    rows = summarize_number_baselines(table, list_number_titles(SOURCES[1:]), TARGETS)
    assert [(r["target"], r["source"]) for r in rows[:4]] == [
        ("valence", s) for s in ("constant", "ridge.face", "ridge.voice", "fused.mean")
    ]
    scores = {(r["target"], r["source"]): r for r in rows}
    assert scores["valence", "constant"]["ccc"] == 0 and scores["valence", "constant"]["pearson"] == 0
    assert scores["arousal", "ridge.face"]["ccc"] > 0.5 and scores["arousal", "ridge.face"]["n_counted"] == SUBJECTS
    assert scores["arousal", "fused.mean"]["rmse"] < scores["arousal", "constant"]["rmse"]
    model = table[["subject", "recording", "window", "fold", "target_0", "target_1"]]
    model = model.assign(**{f"audio.value_{k}": table[f"target_{k}"] for k in range(2)})
    compared = compare_with_baselines(model, ["audio"], [table], TARGETS)
    assert len(compared) == 2 * 5 and all(one["ours"] == "audio" and one["difference"] > 0 for one in compared)
    assert {one["n_comparisons"] for one in compared} == {10} and {one["measure"] for one in compared} == {"ccc"}


def test_regressions_stand_in_the_place_of_classifiers() -> None:
    assert [s.name for s in list_baselines(["eeg"], numbers=True)] == ["svr.eeg", "ridge.eeg", "riemann_ridge.eeg"]
    assert [s.name for s in list_baselines(["eeg", "audio"], ["ridge"], numbers=True)] == ["ridge.eeg", "ridge.audio"]
    assert Source("ridge", "audio").title.startswith("ridge regression on ")
    with pytest.raises(ConfigError, match="--kinds names svm; use any of svr, ridge, riemann_ridge"):
        list_baselines(["eeg"], ["svm"], numbers=True)

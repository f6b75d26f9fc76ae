"""Baselines are what scikit-learn and pyriemann make of training rows; no test row is in any fit or choice."""

import os
import signal
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyriemann.geometry.mean import mean_riemann
from pyriemann.tangentspace import TangentSpace
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from eav_ray.config import SplitConfig
from eav_ray.data.splits import LabeledRecording, make_inner_splits, make_split
from eav_ray.errors import ConfigError, DataError
from eav_ray.evaluation.baselines.classifiers import KINDS, Rows, choose_parameters, fit_and_predict
from eav_ray.evaluation.baselines.folds import (
    BaselineData,
    FoldResult,
    PlannedFold,
    check_access,
    list_titles,
    predict_fold,
    predict_folds,
    summarize_baselines,
)
from eav_ray.evaluation.baselines.inputs import (
    Inputs,
    Source,
    compute_covariances,
    list_baselines,
    normalise_within_subjects,
)
from eav_ray.training.metrics import combine_by_rules, select_logits

SUBJECTS, RECORDINGS, WINDOWS, FEATURES = 6, 8, 2, 5
LOSO = SplitConfig(protocol="loso", n_inner_folds=2, index=1)
SOURCES = [Source("svm", "face"), Source("logistic", "face"), Source("logistic", "voice")]


def make_data(n_classes: int = 2) -> BaselineData:
    """Two modalities of people who differ from each other more than the classes do."""
    rng = np.random.default_rng(0)
    ids = pd.DataFrame(
        [
            {"subject": f"p{s}", "recording": f"{r:02d}", "id": f"p{s}/{r:02d}", "window": w, "order": r}
            for s in range(SUBJECTS)
            for r in range(RECORDINGS)
            for w in range(WINDOWS)
        ]
    )
    label = ids["recording"].astype(int).to_numpy() % n_classes
    subject_number = ids["subject"].str[1:].astype(int).to_numpy()
    inputs = {}
    for m in ("face", "voice"):
        own = 8 * rng.normal(size=(SUBJECTS, FEATURES))[subject_number]
        x = rng.normal(size=(len(ids), FEATURES)) + own + np.outer(label, [3, -2, 0, 0, 0])
        inputs[m] = Inputs(np.ones(len(ids), bool), x, None)
    return BaselineData(ids, label, inputs, n_classes)


def plan_fold(data: BaselineData, config: SplitConfig = LOSO) -> PlannedFold:
    first = data.ids.assign(label=data.label).drop_duplicates("id")
    items = [
        LabeledRecording(i, s, int(y), "speaking", int(o))
        for i, s, y, o in zip(first["id"], first["subject"], first["label"], first["order"], strict=True)
    ]
    inner = () if config.protocol == "within" else tuple(make_inner_splits(items, config))
    return PlannedFold(config.index, make_split(items, config), inner)


def predict(data: BaselineData, access: str = "source_only", sources: list[Source] = SOURCES) -> FoldResult:
    counted = 3 if access == "unlabelled_first_n" else 0
    return predict_fold(data, plan_fold(data), sources, replace(LOSO, access=access, access_recordings=counted))


def is_test(data: BaselineData) -> np.ndarray:
    return data.ids["id"].isin(plan_fold(data).split.test).to_numpy()


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_baseline_is_scikit_learns_of_the_training_rows(n_classes: int) -> None:
    data = make_data(n_classes)
    found, test = predict(data), is_test(data)
    x, y = data.inputs["face"].features, data.label
    chosen = found.chosen["logistic.face"]
    model = LogisticRegression(C=chosen["parameters"]["C"], class_weight="balanced", max_iter=10_000)
    pipeline = make_pipeline(StandardScaler(), model).fit(x[~test], y[~test])
    log_p = select_logits(found.predictions, "logistic.face")
    np.testing.assert_array_equal(log_p.argmax(1), pipeline.predict(x[test]))
    expected = pipeline.predict_log_proba(x[test]) / chosen["temperature"]
    expected -= np.log(np.exp(expected).sum(1, keepdims=True))
    np.testing.assert_allclose(log_p, expected, atol=1e-4)
    svm = found.chosen["svm.face"]["parameters"]
    scaled = StandardScaler().fit(x[~test])
    gamma = svm["gamma_scale"] / (FEATURES * scaled.transform(x[~test]).var())
    machine = SVC(C=svm["C"], gamma=gamma, class_weight="balanced").fit(scaled.transform(x[~test]), y[~test])
    predicted = select_logits(found.predictions, "svm.face").argmax(1)
    decided = machine.decision_function(scaled.transform(x[test]))
    np.testing.assert_array_equal(predicted, decided > 0 if n_classes == 2 else decided.argmax(1))
    np.testing.assert_allclose(np.exp(log_p).sum(1), 1)


@pytest.mark.parametrize("access", ["source_only", "unlabelled_block", "unlabelled_first_n"])
def test_labels_of_tested_people_change_nothing(access: str) -> None:
    data = make_data()
    test = is_test(data)
    turned = data.label.copy()
    turned[test] = 1 - turned[test]
    found, other = predict(data, access), predict(replace(data, label=turned), access)
    assert found.chosen == other.chosen
    pd.testing.assert_frame_equal(found.predictions.drop(columns="label"), other.predictions.drop(columns="label"))


def test_features_of_one_tested_recording_change_no_other_prediction() -> None:
    data = make_data()
    rows = np.flatnonzero(is_test(data))[:WINDOWS]
    x = data.inputs["face"].features.copy()
    x[rows] += 1000
    changed = replace(data, inputs=data.inputs | {"face": replace(data.inputs["face"], features=x)})
    found, other = predict(data), predict(changed)
    assert found.chosen == other.chosen
    pd.testing.assert_frame_equal(found.predictions[WINDOWS:], other.predictions[WINDOWS:])
    assert not found.predictions[:WINDOWS].equals(other.predictions[:WINDOWS])


def test_normalisation_within_people_helps_where_people_differ_and_stays_off_below_its_level() -> None:
    data = make_data()
    rows = {
        access: summarize_baselines(predict(data, access).predictions, list_titles(SOURCES))
        for access in ("source_only", "unlabelled_block")
    }
    scores = {access: [row["recording_balanced_accuracy"] for row in found] for access, found in rows.items()}
    assert min(scores["unlabelled_block"]) >= 0.9 > max(scores["source_only"])


def test_people_are_normalised_by_the_recordings_that_the_level_allows() -> None:
    data = make_data()
    subject, inputs = data.ids["subject"].to_numpy(), data.inputs["face"]
    accessible = (data.ids["order"] < 3).to_numpy()
    found = normalise_within_subjects(inputs, "face", subject, accessible).features
    own = subject == "p2"
    measured = inputs.features[own & accessible]
    np.testing.assert_allclose(found[own], (inputs.features[own] - measured.mean(0)) / measured.std(0))
    with pytest.raises(DataError, match="no recording of p0 that split.access lets be looked at has face"):
        normalise_within_subjects(inputs, "face", subject, subject == "p2")


def test_unknown_features_and_missing_windows_are_no_knowledge() -> None:
    data = make_data()
    test = np.flatnonzero(is_test(data))
    inputs = data.inputs["face"]
    x, present = inputs.features.copy(), inputs.present.copy()
    x[::7, 1] = np.nan
    present[test[0]] = False
    x[test[0]] = np.nan
    present[0] = False  # of a training row
    x[0] = np.nan
    found = predict(replace(data, inputs=data.inputs | {"face": Inputs(present, x, None)})).predictions
    known = np.isfinite(select_logits(found, "svm.face")).all(1)
    assert not known[0] and known[1:].all()
    # What is left of the modalities speaks alone.
    voice = select_logits(found, "logistic.voice")
    for rule in ("product", "mean_probability"):
        np.testing.assert_allclose(select_logits(found, f"fused.{rule}")[0], voice[0], rtol=1e-6)


def test_the_fusion_is_that_of_the_kinds_that_inner_folds_found_best() -> None:
    found = predict(make_data())
    face = found.chosen["fused"]["face"]
    inner = {kind: found.chosen[f"{kind}.face"]["inner_score"] for kind in ("svm", "logistic")}
    assert inner[face] == max(inner.values()) and found.chosen["fused"]["voice"] == "logistic"
    logits = np.stack([select_logits(found.predictions, s) for s in (f"{face}.face", "logistic.voice")], 1)
    expected = combine_by_rules(logits, np.ones(logits.shape[:2], bool))
    for rule, log_p in expected.items():
        np.testing.assert_allclose(select_logits(found.predictions, f"fused.{rule}"), log_p)


def test_parameters_are_those_with_the_best_mean_over_inner_folds() -> None:
    data, kind = make_data(), KINDS["logistic"]
    fold = plan_fold(data)

    def select(ids: tuple[str, ...]) -> Rows:
        chosen = data.ids["id"].isin(ids).to_numpy()
        return Rows(data.inputs["face"].features[chosen], data.label[chosen], data.ids["id"].to_numpy()[chosen])

    inner = [(select(one.train), select(one.validation)) for one in fold.inner]
    scores = []
    for parameters in kind.grid:
        own = []
        for fitted, scored in inner:
            model = LogisticRegression(**parameters, class_weight="balanced", max_iter=10_000)
            pipeline = make_pipeline(StandardScaler(), model).fit(fitted.x, fitted.label)
            table = pd.DataFrame(pipeline.predict_log_proba(scored.x)).assign(y=scored.label, r=scored.recording)
            mean = table.groupby("r").mean()
            own.append(balanced_accuracy_score(mean["y"], mean[[0, 1]].to_numpy().argmax(1)))
        scores.append(np.mean(own))
    choice = choose_parameters(kind, inner, 2)
    assert choice.score is not None and choice.score[0] == pytest.approx(max(scores))
    assert scores[list(kind.grid).index(choice.parameters)] == pytest.approx(max(scores))


def test_how_many_folds_are_predicted_at_once_changes_no_digit() -> None:
    data = make_data()
    folds = [plan_fold(data, replace(LOSO, index=k)) for k in range(3)]
    one, two = (list(predict_folds(data, folds, SOURCES, LOSO, n)) for n in (1, 2))
    for a, b in zip(one, two, strict=True):
        pd.testing.assert_frame_equal(a.predictions, b.predictions, check_exact=True)
        assert a.chosen == b.chosen


def test_a_process_that_is_killed_costs_only_time(capsys: pytest.CaptureFixture[str]) -> None:
    data = make_data()
    folds = [plan_fold(data, replace(LOSO, index=k)) for k in range(2)]
    expected = list(predict_folds(data, folds, SOURCES, LOSO, 1))
    hostile: Any = {"nothing": KillsWhoeverReceivesIt()}
    found = list(predict_folds(replace(data, inputs={**data.inputs, **hostile}), folds, SOURCES, LOSO, 2))
    assert "one at a time" in capsys.readouterr().err
    for a, b in zip(expected, found, strict=True):
        pd.testing.assert_frame_equal(a.predictions, b.predictions, check_exact=True)


class KillsWhoeverReceivesIt:
    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return end_this_process, ()


def end_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_protocol_without_rows_to_choose_on_takes_the_defaults() -> None:
    data = make_data()
    within = replace(LOSO, protocol="within")
    found = predict_fold(data, plan_fold(data, within), SOURCES, within)
    assert all(found.chosen[s.name]["inner_score"] is None for s in SOURCES)
    assert found.chosen["svm.face"]["parameters"] == KINDS["svm"].default
    assert set(found.predictions["subject"]) == {"p1"} and found.chosen["fused"]["face"] == "logistic"


def test_training_rows_of_one_class_teach_nothing() -> None:
    rows = Rows(np.random.default_rng(0).normal(size=(6, 2)), np.zeros(6, int), np.arange(6).astype(str))
    assert fit_and_predict(KINDS["logistic"], rows, [], rows.x, 2) is None


def test_the_tangent_space_is_pyriemanns_and_recentred_people_have_the_identity_as_mean() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(2, 4, 4))
    subject = np.repeat(["p0", "p1"], 20)
    label = np.tile([0, 1], 20)
    x = rng.normal(size=(40, 4, 200)) * np.where(label, 3.0, 1.0)[:, None, None] ** np.array([1, 0, 0, 0])[:, None]
    covariances = compute_covariances(np.einsum("bij,bjt->bit", mixing[(subject == "p1").astype(int)], x))
    inputs = Inputs(np.ones(40, bool), np.zeros((40, 1)), covariances)
    recentred = normalise_within_subjects(inputs, "eeg", subject, np.ones(40, bool)).covariances
    assert recentred is not None
    for name in ("p0", "p1"):
        np.testing.assert_allclose(mean_riemann(recentred[subject == name]), np.eye(4), atol=1e-6)
    train = subject == "p0"
    rows = Rows(recentred[train], label[train], np.arange(20).astype(str))
    found = fit_and_predict(KINDS["riemann"], rows, [], recentred[~train], 2)
    assert found is not None
    model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=10_000)
    expected = make_pipeline(TangentSpace(), StandardScaler(), model).fit(rows.x, rows.label)
    np.testing.assert_allclose(found[0], expected.predict_log_proba(recentred[~train]), atol=1e-6)
    assert (found[0].argmax(1) == label[~train]).mean() >= 0.8


def test_a_flat_window_has_a_covariance_with_a_logarithm() -> None:
    assert np.linalg.eigvalsh(compute_covariances(np.zeros((1, 3, 50)))).min() > 0


def test_baselines_that_there_are_not_are_refused() -> None:
    with pytest.raises(ConfigError, match="--kinds names forest; use any of svm, logistic, riemann"):
        list_baselines(["eeg"], ["forest"])
    with pytest.raises(ConfigError, match="there is no baseline of video"):
        list_baselines(["video"], ["riemann"])
    assert [s.name for s in list_baselines(["video", "eeg"])] == [
        *("svm.video", "logistic.video"),
        *("svm.eeg", "logistic.eeg", "riemann.eeg"),
    ]
    assert Source("svm", "audio").title == "SVM on MFCC + log-mel"
    with pytest.raises(ConfigError, match="split.access=labelled_k"):
        check_access(SplitConfig(access="labelled_k", access_recordings=2))

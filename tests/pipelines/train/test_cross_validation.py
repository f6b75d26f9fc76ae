"""A protocol is found again by what its folds learn and are tested on; a fold that fails is named beside the others."""

import numpy as np
import pandas as pd
import pytest

from eav_ray.config import Experiment, Protocol, override
from eav_ray.errors import ConfigError, DataError
from eav_ray.pipelines.train import cross_validation
from eav_ray.pipelines.train.cross_validation import (
    CVResult,
    PlannedFold,
    describe_missing_folds,
    format_cv_report,
    make_protocol_key,
    plan_cv_folds,
)
from eav_ray.reporting.score_reports import ClassReport
from eav_ray.reporting.tables import format_protocol_table
from eav_ray.storage import Store
from tests.helpers.datasets import CLASSES, PEOPLE, make_dataset


@pytest.fixture
def experiment() -> Experiment:
    return override(Experiment(), {"data.modalities": ["audio", "eeg"], "split.protocol": "within", "split.n_folds": 2})


def key(experiment: Experiment, *, without: str = "") -> str:
    return make_protocol_key(experiment, plan_cv_folds(experiment, make_dataset(experiment, without=without)))


@pytest.mark.parametrize(("name", "count"), [("within", PEOPLE), ("loso", PEOPLE), ("subject_kfold", 2)])
def test_every_fold_is_planned_and_no_recording_is_tested_twice(
    experiment: Experiment, name: Protocol, count: int
) -> None:
    e = override(experiment, {"split.protocol": name})
    folds = plan_cv_folds(e, make_dataset(e))
    assert [f.number for f in folds] == list(range(count))
    tested = [i for f in folds for i in f.split.test]
    assert len(tested) == len(set(tested))
    assert [f.runs[-1].kind for f in folds] == ["fusion"] * count
    assert all(run.split == f.split for f in folds for run in f.runs)


def test_a_fold_that_cannot_be_made_is_named_before_anything_is_trained(experiment: Experiment) -> None:
    data = make_dataset(experiment)
    data.windows.ids = data.windows.ids[lambda t: (t["subject"] != "p2") | (t["order"] < 1)]
    with pytest.raises(ConfigError, match="fold 2 cannot be made: the split leaves nothing to score"):
        plan_cv_folds(experiment, data)


def test_one_modality_and_training_together_need_one_run_a_fold(experiment: Experiment) -> None:
    for change in ({"data.modalities": ["eeg"]}, {"train.mode": "end_to_end"}):
        e = override(experiment, change)
        assert [len(f.runs) for f in plan_cv_folds(e, make_dataset(e))] == [1] * PEOPLE


@pytest.mark.parametrize("change", [{"split.index": 2}, {"runtime.groups": 2}, {"store.cache": "/elsewhere"}])
def test_what_changes_no_model_finds_the_same_result(experiment: Experiment, change: dict[str, object]) -> None:
    assert key(experiment) == key(override(experiment, change))


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"optim.lr": 1e-5}, {"split.protocol": "loso"}, {"data.modalities": ["eeg"]}]
)
def test_another_experiment_is_another_result(experiment: Experiment, change: dict[str, object]) -> None:
    assert key(experiment) != key(override(experiment, change))


def test_other_test_recordings_of_the_same_models_are_another_result(experiment: Experiment) -> None:
    whole, less = (plan_cv_folds(experiment, make_dataset(experiment, without=w)) for w in ("", "p0/007"))
    assert [f.runs[-1].key for f in whole][1:] == [f.runs[-1].key for f in less][1:]
    assert make_protocol_key(experiment, whole) != make_protocol_key(experiment, less)


def scored(folds: list[PlannedFold]) -> CVResult:
    rng = np.random.default_rng(0)
    sources = ("audio", "eeg", "mean_probability", "product", "fusion")
    rows = [
        {"subject": i.split("/")[0], "recording": i.split("/")[1], "window": 0, "label": n % 2, "fold": f.number}
        | {f"{s}.logit_{k}": rng.normal() for s in sources for k in range(2)}
        for f in folds
        for n, i in enumerate(f.split.test)
    ]
    return CVResult(pd.DataFrame(rows), [{"fold": f.number, "modality_collapse": []} for f in folds])


def test_the_table_without_failed_folds_is_of_the_others_and_names_them(experiment: Experiment) -> None:
    folds = plan_cv_folds(experiment, make_dataset(experiment))
    kept = scored(folds[:2])
    failed = {3: "no memory", 2: "no disk"}
    lines = format_cv_report(experiment, folds, ClassReport(CLASSES), kept, failed, "results/protocols/x").splitlines()
    assert lines[0].startswith("within, 2 of 4 folds: ") and "of 2 people of whom other recordings" in lines[0]
    assert lines[1:-1] == format_protocol_table(kept.predictions, ["audio", "eeg"], 2, {0: [], 1: []}).splitlines()
    assert lines[-1] == describe_missing_folds(failed, folds)
    assert "2 of 4 folds" in lines[-1] and "2 (p2), 3 (p3)" in lines[-1] and "no disk" in lines[-1]
    assert "results/protocols/x" in format_cv_report(
        experiment, folds, ClassReport(CLASSES), scored(folds), {}, "results/protocols/x"
    )


def test_a_group_that_ends_does_not_end_the_job(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_each(*_: object, **__: object) -> dict[str, str]:
        raise DataError("a group of training workers ended: no")

    monkeypatch.setattr(cross_validation, "announce_workload", lambda *_: 0.0)
    monkeypatch.setattr(cross_validation, "find_finished_runs", lambda *_: {})
    monkeypatch.setattr(cross_validation, "train_runs", run_each)
    data = make_dataset(experiment)
    assert (
        "workers ended: no"
        in cross_validation.train_folds(experiment, plan_cv_folds(experiment, data), data, Store("/nowhere"))[""]
    )

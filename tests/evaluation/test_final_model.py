"""A final model passes the checks that are of it, fails those of a tested one, and nothing of its own measures it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eav_ray.config import override
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import ALL_SUBJECTS, Split, list_labeled_recordings, make_final_split, make_split
from eav_ray.errors import ConfigError
from eav_ray.evaluation.compatibility import describe_training_recordings
from eav_ray.evaluation.expected_result import (
    format_expected_result,
    get_expected_result,
    refuse_final,
    summarize_expected_result,
)
from eav_ray.evaluation.leak_audit.audit import audit_checkpoint
from eav_ray.evaluation.leak_audit.content import WindowContents
from eav_ray.evaluation.leak_audit.final_model import ScoredModel, audit_final_model
from eav_ray.pipelines.evaluate.final_model import choose_changes
from eav_ray.storage import Store
from eav_ray.training.checkpoint_files import Checkpoint
from eav_ray.training.run_spec import Run, plan_runs
from eav_ray.training.statistics import fit_model_statistics
from tests.helpers.audits import PEOPLE, make_experiment, make_honest_checkpoint, store_windows
from tests.helpers.checkpoints import make_checkpoint, save_checkpoint
from tests.helpers.predictions import MODALITIES, draw_predictions

EXPECTED = summarize_expected_result(
    draw_predictions(), MODALITIES, 3, source="protocols/demo", description="loso of 8 folds"
)


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> WindowCache:
    return store_windows(tmp_path_factory.mktemp("final"))


def list_items(windows: WindowCache) -> Any:
    return list_labeled_recordings(windows.ids, make_experiment().data, 0)


@pytest.fixture(scope="module")
def final(windows: WindowCache) -> Checkpoint:
    """A finished model of all subjects, whose statistics are of all of them."""
    from eav_ray.models.classifier import Classifier

    split, one = make_final_split(list_items(windows)), make_honest_checkpoint(windows)
    model = Classifier(one.experiment, one.state.shapes)
    fit_model_statistics(model, windows, split.train)
    return replace(one, split=split, weights=model.state_dict(), metrics={"expected_result": EXPECTED})


def make_tested(windows: WindowCache) -> list[ScoredModel]:
    e, items = make_experiment(), list_items(windows)
    splits = [make_split(items, replace(e.split, index=k)) for k in range(PEOPLE)]
    return [ScoredModel(f"fold-{k}", split, split.test) for k, split in enumerate(splits)]


def test_a_final_model_passes_its_own_audit(windows: WindowCache, final: Checkpoint) -> None:
    audit = audit_final_model(final, windows, make_tested(windows), {})
    assert [check.outcome for check in audit.checks] == ["passed"] * 5, audit.summary
    details = {check.name: check.detail for check in audit.checks}
    assert details["origin of the expected result"] == (
        "32 recordings, each scored once by one of 4 models that never saw its subject"
    )
    assert details["statistics fitted on training rows only"].endswith("those of the training rows alone")


def share_a_subject(tested: list[ScoredModel], final: Checkpoint) -> list[ScoredModel]:
    first = tested[0]
    return [replace(first, split=replace(first.split, train=(*first.split.train, "p0/000"))), *tested[1:]]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (share_a_subject, "fold-0 was trained on subjects that it is scored on: p0"),
        (lambda tested, final: [replace(tested[0], key=final.state.key)], "of its own predictions"),
        (lambda tested, final: [*tested, tested[0]], "scored more than once"),
        (lambda tested, final: [], "or none is"),
        (lambda tested, final: [replace(tested[0], scored=("x/1",))], "not of this data set: x/1"),
    ],
)
def test_an_expected_result_of_other_origin_fails_it(
    windows: WindowCache, final: Checkpoint, damage: Callable[..., list[ScoredModel]], problem: str
) -> None:
    audit = audit_final_model(final, windows, damage(make_tested(windows), final), {})
    assert problem in audit.first_failure


@pytest.mark.parametrize(
    ("split", "problem"),
    [
        (lambda split: replace(split, train=split.train[:-1]), "not all that is stored: p3/007"),
        (lambda split: replace(split, test=split.train[:1]), "said to test it: p0/000"),
        (lambda split: replace(split, protocol="loso"), "its split is of loso"),
    ],
)
def test_another_training_side_fails_it(
    windows: WindowCache, final: Checkpoint, split: Callable[[Split], Split], problem: str
) -> None:
    audit = audit_final_model(replace(final, split=split(final.split)), windows, make_tested(windows), {})
    assert problem in audit.first_failure


def test_statistics_of_fewer_subjects_and_foreign_encoders_fail_it(windows: WindowCache, final: Checkpoint) -> None:
    other = replace(final, weights=make_honest_checkpoint(windows).weights)
    assert "do not match" in audit_final_model(other, windows, make_tested(windows), {}).first_failure
    fused = replace(final, state=replace(final.state, encoder_keys={"eeg": "encoder-1"}))
    audit = audit_final_model(fused, windows, make_tested(windows), {"eeg": ("x/1",)})
    assert "trained on what is not of the training side: x/1" in audit.first_failure


def test_scores_of_its_own_recordings_fail_the_audit_of_tested_models(windows: WindowCache, final: Checkpoint) -> None:
    contents = WindowContents(windows, make_experiment().preprocessing)
    audit = audit_checkpoint(final, contents, final.split.train[:3])
    failed = [check.name for check in audit.checks if check.outcome == "failed"]
    assert {"split, recomputed", "recordings in two splits", "equal windows in two splits"} <= set(failed)


def test_its_key_is_of_no_fold_and_of_its_expected_result(windows: WindowCache) -> None:
    e = override(make_experiment(), {"train.mode": "staged"})
    items = list_items(windows)
    folds = [plan_runs(e, make_split(items, replace(e.split, index=k)), "data") for k in range(PEOPLE)]
    plain = plan_runs(e, make_final_split(items), "data")
    keys = {run.key for fold in folds for run in fold} | {run.key for run in plain}
    assert len(keys) == 3 * (PEOPLE + 1)
    last = plain[-1]
    expecting = [replace(last, expected_result={"source": source}) for source in ("protocols/a", "protocols/b")]
    assert len({run.key for run in expecting} | keys) == len(keys) + 2
    assert Run("joint", e, last.split, "data").key != Run("joint", e, last.split, "data", expected_result=EXPECTED).key


def test_the_expected_result_is_one_line() -> None:
    line = format_expected_result(EXPECTED)
    assert line.startswith("expected of fusion on subjects whom it never saw: accuracy ")
    assert line.endswith(", chance 33.33; by loso of 8 folds, 96 recordings of 8 subjects") and "(95 % " in line
    assert set(EXPECTED["scores"]) == {*MODALITIES, "mean_probability", "product", "fusion"}
    unequal = summarize_expected_result(draw_predictions(unequal=True), MODALITIES, 3, source="s", description="d")
    assert "balanced accuracy" in format_expected_result(unequal)
    assert format_expected_result({}) == ""


def test_of_numbers_it_is_ccc_and_error() -> None:
    rng = np.random.default_rng(0)
    table = draw_predictions().drop(columns="label")
    table = table[["subject", "recording", "window", "fold"]].assign(
        target_0=lambda t: t["recording"].str[1:].astype(float), target_1=1.0 * rng.integers(0, 9, len(table))
    )
    table["target_1"] = table.groupby(["subject", "recording"])["target_1"].transform("first")
    for source in ("audio", "mean", "fusion"):
        table[f"{source}.value_0"] = table["target_0"]
        table[f"{source}.value_1"] = table["target_1"]
    found = summarize_expected_result(table, ["audio"], 0, source="s", description="loso of 8 folds")
    assert found["scores"]["fusion"] == pytest.approx({"ccc": 1.0, "pearson": 1.0, "rmse": 0.0})
    assert "CCC 1.000, RMSE 0.000; by loso" in format_expected_result(found)


def test_it_is_refused_where_only_its_own_recordings_could_measure_it(tmp_path: Path) -> None:
    e = make_experiment()
    split = Split(ALL_SUBJECTS, ("p0/1", "p1/1"))
    made = replace(make_checkpoint(e, split=split), metrics={"expected_result": EXPECTED})
    final = save_checkpoint(Store(tmp_path / "final"), made)
    with pytest.raises(
        ConfigError, match=r"was trained on all subjects, so it cannot be tested .*; expected of fusion"
    ):
        refuse_final(final, "tested")
    assert get_expected_result(final) == EXPECTED
    fold = save_checkpoint(Store(tmp_path / "fold"), make_checkpoint(e))
    refuse_final(fold, "tested")
    assert get_expected_result(fold) is None
    said = describe_training_recordings(e, final, ["p0/1", "p9/1", "p9/1"])
    assert said.startswith("1 of 2 recordings are among those that ") and not describe_training_recordings(
        e, final, ["x/1"]
    )
    other = override(e, {"data.dataset": "ravdess", "data.modalities": ["audio"]})
    assert describe_training_recordings(other, final, ["p0/1"]) == ""


def test_of_several_searches_the_choice_of_most_is_taken_and_of_equals_the_best_on_inner_folds() -> None:
    one, two, three = ({"fusion.heads": n} for n in (1, 2, 4))
    assert choose_changes([(one, 0.9), (two, 0.5), (two, 0.6)]) == (two, 2)
    assert choose_changes([(one, 0.5), (two, 0.9), (three, 0.6)]) == (two, 1)

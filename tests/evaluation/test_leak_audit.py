"""The audit finds every inserted leak in what a checkpoint and the stored windows themselves say, and no other."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from eav_ray.config import override
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.evaluation.leak_audit.audit import audit_checkpoint
from eav_ray.evaluation.leak_audit.checks import LeakAudit, LeakCheck, count_outcomes
from eav_ray.evaluation.leak_audit.content import WindowContents
from eav_ray.models.classifier import Classifier
from eav_ray.training.checkpoint_files import Checkpoint
from eav_ray.training.statistics import fit_model_statistics
from tests.helpers.audits import RECORDINGS, make_experiment, make_honest_checkpoint, store_windows, validate_on_test
from tests.helpers.checkpoints import change_state

TWINS_OF_EEG = ["equal windows in two splits", "near-duplicates of eeg in two splits"]


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> WindowCache:
    return store_windows(tmp_path_factory.mktemp("audit"))


@cache
def contents(windows: WindowCache) -> WindowContents:
    """Hashed once for all tests."""
    return WindowContents(windows, make_experiment().preprocessing)


def failed(checkpoint: Checkpoint, windows: WindowCache, scored: tuple[str, ...] = ()) -> list[str]:
    return [c.name for c in audit_checkpoint(checkpoint, contents(windows), scored).checks if c.outcome == "failed"]


@pytest.mark.parametrize("protocol", ["loso", "within", "paper", "within_validated"])
def test_an_honest_checkpoint_passes_and_says_what_was_compared(windows: WindowCache, protocol: str) -> None:
    found = audit_checkpoint(make_honest_checkpoint(windows, protocol), contents(windows))
    assert not found.failed and not found.first_failure
    reported = {c.name: c.detail for c in found.checks}
    assert len(reported) == 11
    statistics = reported["statistics fitted on training rows only"]
    assert statistics.startswith("encoders.audio.standardise, normalise: those of the training rows alone; test rows")
    assert [c.name for c in found.checks if c.outcome != "passed"] == ["origin of searched values"]
    tested = 2 * len(make_honest_checkpoint(windows, protocol).split.test)
    assert reported["equal windows in two splits"].startswith(f"{tested} signals")
    for m in ("audio", "eeg"):
        detail = reported[f"near-duplicates of {m} in two splits"]
        assert detail.startswith(f"{tested // 2} of {tested // 2} test recordings compared with ")
    again = audit_checkpoint(make_honest_checkpoint(windows, protocol), contents(windows))
    assert (
        again.sha256
        == found.sha256
        != audit_checkpoint(make_honest_checkpoint(windows, "subject_kfold"), contents(windows)).sha256
    )


def test_silence_is_no_leak_and_tells_nothing(tmp_path: Path) -> None:
    quiet = store_windows(tmp_path, silent=True)
    assert failed(make_honest_checkpoint(quiet), quiet) == []
    outcomes = {c.name: c.outcome for c in audit_checkpoint(make_honest_checkpoint(quiet), contents(quiet)).checks}
    assert outcomes["near-duplicates of audio in two splits"] == "cannot tell"
    assert outcomes["near-duplicates of eeg in two splits"] == "passed"


def test_an_encoder_that_a_fusion_follows_passes_though_people_lack_its_modality(tmp_path: Path) -> None:
    """Its split is of the whole experiment: of all by their EEG alone, the second person would be another one."""
    lacking = store_windows(tmp_path, without=(*range(RECORDINGS), 2 * RECORDINGS))  # p0, and one recording of p2
    for protocol in ("loso", "within"):
        whole = make_honest_checkpoint(lacking, protocol)
        alone = replace(whole.experiment, data=replace(whole.experiment.data, modalities=("eeg",)))
        model = Classifier(alone, whole.state.shapes)
        fit_model_statistics(model, lacking, whole.split.train)
        encoder = replace(whole, experiment=alone, weights=model.state_dict())
        assert failed(encoder, lacking) == []
        assert "split, recomputed" in failed(moved(encoder), lacking)


def test_what_trained_before_an_adaptation_is_known_too(tmp_path: Path) -> None:
    def adapted(windows: WindowCache) -> Checkpoint:
        one = make_honest_checkpoint(windows)
        own = one.split.test
        e = override(one.experiment, {"split.access": "labelled_k", "split.access_recordings": 2})
        return replace(one, experiment=e, split=replace(one.split, protocol="adapted", train=own[:2], test=own[2:]))

    twins = store_windows(tmp_path, twin=(0, RECORDINGS + 5))  # of p0, who trained the fold, and of p1
    assert failed(adapted(twins), twins) == TWINS_OF_EEG
    sound = store_windows(tmp_path / "sound")
    assert failed(adapted(sound), sound) == []
    stranger = adapted(sound)
    stranger = replace(stranger, split=replace(stranger.split, test=(*stranger.split.test, "p0/000")))
    assert "split, recomputed" in failed(stranger, sound)


def test_a_training_that_was_first_made_for_an_inner_fold_is_judged_by_the_fold_that_is_tested(
    windows: WindowCache,
) -> None:
    """Equal training rows are trained once. Its weights are of the last epoch, whoever was validated on beside."""
    one = make_honest_checkpoint(windows)
    inner = replace(one, split=replace(one.split, validation=one.split.test, test=()))
    assert "split, recomputed" in failed(inner, windows)

    def reported(scored: tuple[str, ...], changes: Callable[[Checkpoint], Checkpoint] = lambda c: c) -> list[str]:
        found = audit_checkpoint(changes(inner), contents(windows), scored, tested_experiment=one.experiment)
        return [c.name for c in found.checks if c.outcome == "failed"]

    assert reported(one.split.test) == []
    assert reported(one.split.test[1:]) == ["split, recomputed"]
    assert "recordings in two splits" in reported(one.split.test, lambda c: moved(replace(c, split=one.split)))
    validated = make_honest_checkpoint(windows, "within_validated")
    bare = replace(validated, split=replace(validated.split, test=()))
    found = audit_checkpoint(bare, contents(windows), validated.split.test, tested_experiment=validated.experiment)
    assert not found.failed and "p1/007" in validated.split.test


def test_encoders_that_saw_more_than_the_fusion_are_found(windows: WindowCache) -> None:
    one = change_state(make_honest_checkpoint(windows), encoder_keys={"audio": "encoder-1", "eeg": "encoder-2"})
    name = "encoders trained on training rows only"

    def reported(encoders: dict[str, tuple[str, ...]]) -> str:
        return {c.name: c.outcome for c in audit_checkpoint(one, contents(windows), (), encoders).checks}[name]

    sound = dict.fromkeys(("audio", "eeg"), one.split.train)
    assert reported(sound) == "passed"
    assert reported({"audio": one.split.train}) == "cannot tell"  # the other's run is not at hand
    assert reported(sound | {"eeg": (*one.split.train, one.split.test[0])}) == "failed"


def moved(one: Checkpoint) -> Checkpoint:
    """A recording of the test side is trained on, too."""
    return replace(one, split=replace(one.split, train=(*one.split.train, one.split.test[0])))


def other_person(one: Checkpoint) -> Checkpoint:
    """A person's recordings are divided between the sides."""
    return replace(one, split=replace(one.split, train=(*one.split.train, one.split.test[0]), test=one.split.test[1:]))


LEAKS: dict[str, tuple[Callable[[Checkpoint], Checkpoint], set[str]]] = {
    "a recording on both sides": (
        moved,
        {
            "split, recomputed",
            "recordings in two splits",
            "subjects in two splits",
            "access to tested subjects",
            "equal windows in two splits",
            "near-duplicates of audio in two splits",
            "near-duplicates of eeg in two splits",
            "statistics fitted on training rows only",  # which are not of all that is called training rows
        },
    ),
    "a subject on both sides": (
        other_person,
        {
            "split, recomputed",
            "subjects in two splits",
            "access to tested subjects",
            "statistics fitted on training rows only",
        },
    ),
    "choices by the test": (
        validate_on_test,
        {
            "split, recomputed",
            "recordings in two splits",
            "subjects in two splits",
            "access to tested subjects",
            "equal windows in two splits",
            "near-duplicates of audio in two splits",
            "near-duplicates of eeg in two splits",
            "model selection",
        },
    ),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_in_the_split_is_named(windows: WindowCache, leak: str) -> None:
    change, expected = LEAKS[leak]
    broken = change(make_honest_checkpoint(windows))
    assert set(failed(broken, windows)) == expected
    assert broken.split.test[0].split("/")[0] in audit_checkpoint(broken, contents(windows)).first_failure


def test_equal_signals_under_two_names_are_found_where_the_split_parts_them(tmp_path: Path) -> None:
    """The split is sound by all names; only the content tells."""
    twins = store_windows(tmp_path, twin=(0, RECORDINGS))  # of p0 and of p1, who is tested
    assert failed(make_honest_checkpoint(twins), twins) == TWINS_OF_EEG
    detail = audit_checkpoint(make_honest_checkpoint(twins), contents(twins)).first_failure
    assert "1 equal signals of eeg" in detail and "p0/000 window 0" in detail and "p1/000 window 0" in detail
    assert "; drop one recording of each pair from the data set and preprocess again (`eav check --deep`" in detail
    inside = store_windows(tmp_path / "same", twin=(0, 1))  # on one side: a duplicate, and no leak
    assert failed(make_honest_checkpoint(inside), inside) == []


def test_scores_of_other_recordings_than_its_own_test_side_are_audited_too(windows: WindowCache) -> None:
    one = make_honest_checkpoint(windows)
    assert failed(one, windows, one.split.test[:2]) == []
    assert "recordings in two splits" in failed(one, windows, (one.split.train[0],))


def test_other_recordings_than_those_that_are_stored_do_not_pass(windows: WindowCache) -> None:
    one = make_honest_checkpoint(windows)
    smaller = replace(one, experiment=replace(one.experiment, data=replace(one.experiment.data, subjects=("p0", "p1"))))
    assert "split, recomputed" in failed(smaller, windows)


def test_what_cannot_be_told_is_neither_a_pass_nor_a_leak() -> None:
    passed, open_ = LeakCheck("a", "passed", ""), LeakCheck("b", "cannot tell", "why")
    assert not LeakAudit((passed, open_)).failed and LeakAudit((passed, open_)).first_failure == ""
    assert count_outcomes(c.outcome for c in (passed, open_, open_)) == {"passed": 1, "failed": 0, "cannot tell": 2}

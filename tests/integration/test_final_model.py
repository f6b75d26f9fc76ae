"""A final model is trained on all subjects, says what to expect of it, and is tested on nothing of its own."""

from pathlib import Path

import pytest

from eav_ray import Predictor
from eav_ray.storage import Store
from eav_ray.training.checkpoint import open_checkpoint
from tests.helpers.clusters import ONE_WORKER, Job

pytestmark = pytest.mark.ray
CHANGES = ["data.modalities=[audio,eeg]", "model.audio.kind=mfcc", "model.eeg.kind=bandpower"]
CHANGES += ONE_WORKER


@pytest.fixture(scope="module")
def words(preprocessed: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*preprocessed, *CHANGES, f"store.results={tmp_path_factory.mktemp('final')}"]


def read_path(printed: str, name: str = "checkpoint") -> str:
    return printed.rsplit(f"{name}: ", 1)[1].splitlines()[0]


@pytest.fixture(scope="module")
def final(job: Job, words: list[str]) -> str:
    """What the command prints once the protocol is finished."""
    refused = job("train", *words, "--all-subjects", expect=2).stderr
    assert "has no finished protocol subject_kfold of this experiment" in refused and "run `eav protocol`" in refused
    job("protocol", *words)
    return job("train", *words, "--all-subjects").stdout


def test_it_says_what_to_expect_and_passes_the_audit(final: str, words: list[str], job: Job) -> None:
    assert "expected of fusion on subjects whom it never saw: accuracy " in final
    assert "by subject_kfold of 3 folds, 30 recordings of 3 subjects" in final
    assert "settings: those of the experiment" in final and "checks passed, 0 failed" in final
    checkpoint = open_checkpoint(read_path(final))
    assert checkpoint.split.protocol == "all_subjects" and len(checkpoint.split.train) == 30
    expected = checkpoint.metrics["expected_result"]
    assert Predictor(checkpoint.path).expected_result == expected and expected["recordings"] == 30
    card = Path(read_path(final, "model card")).read_text()
    assert "No recording is left that could test this model. Expected of fusion" in card
    assert f"`{expected['source']}`" in card and "| fusion | " in card
    again = job("train", *words, "--all-subjects").stdout
    assert read_path(again) == checkpoint.path and "finished earlier" in again


def test_nothing_of_its_own_tests_it(final: str, words: list[str], job: Job, synthetic: Path, tmp_path: Path) -> None:
    path, said = read_path(final), "was trained on all subjects, so it cannot be "
    one_batch = [*words, "train.adaptation.batch=2"]
    for name, more in (
        ("evaluate", [*words, "--checkpoint", path]),
        ("adapt", [*one_batch, "--checkpoint", path, "--subject", "subject1"]),
        ("robustness", [path, f"data.root={synthetic}"]),
        ("robustness", [path, f"data.root={synthetic}", "--all"]),
    ):
        (line,) = job(name, *more, expect=2).stderr.strip().splitlines()[-1:]
        assert said + ("adapted" if name == "adapt" else "tested") in line, line
    out = tmp_path / "predictions.csv"
    done = job("predict", path, f"data.root={synthetic}", "data.subjects=[subject1]", "--out", str(out))
    assert "10 of 10 recordings are among those that" in done.stdout


def test_it_takes_the_settings_of_a_search(final: str, words: list[str], job: Job) -> None:
    refused = job("train", *words, "--all-subjects", "--search", expect=2).stderr
    assert "nor a finished search of its fold 0" in refused
    job("search", *words)
    done = job("train", *words, "--all-subjects", "--search").stdout
    assert "by fold 0 of subject_kfold, whose search chose the settings, 10 recordings of 1 subject" in done
    checkpoint = open_checkpoint(read_path(done))
    changes = checkpoint.metrics["expected_result"]["changes"]
    assert (
        set(changes) == {"fusion.heads", "optim.lr"} and checkpoint.experiment.fusion.heads == changes["fusion.heads"]
    )
    assert read_path(done) != read_path(final)
    assert "--search goes with --all-subjects" in job("train", *words, "--search", expect=2).stderr
    refused = job("train", *words, "split.protocol=within", "--all-subjects", expect=2).stderr
    assert "which does not say what a model is worth on a new subject" in refused
    assert Store(words[-1].partition("=")[2]).list_folders("results_pages")

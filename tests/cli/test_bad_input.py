"""Whatever a user gets wrong ends in one clear line, a non-zero exit and no traceback, before Ray starts."""

import pytest
import ray

from eav_ray.cli.main import run_command
from tests.helpers.paths import DEMO as DEMO_PATH
from tests.helpers.paths import REPOSITORY

DEMO = str(DEMO_PATH)


def run_wrong(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command in this process that cannot be run; returns its line of error."""
    code = run_command(words)
    assert not ray.is_initialized()
    printed = capsys.readouterr()
    assert code == 2, printed
    assert all(line.startswith("error: ") for line in printed.err.strip().splitlines()), printed.err
    return printed.err


CASES = {
    "an experiment file that is not there": (
        "train",
        ["experiments/no.yaml"],
        ["no.yaml", "demo", "the path of a YAML file"],
    ),
    "an experiment that is not there": ("train", ["nosuch"], ["no experiment nosuch; give one of", "fusion"]),
    "a name with a mistake": ("train", ["fusoin"], ["no experiment fusoin", 'did you mean "fusion"?']),
    "no experiment": ("train", [], ["exactly one experiment, one of", "demo", "a YAML file", "eav train demo", "none"]),
    "no checkpoint": ("predict", [], ["exactly one checkpoint", "eav train", "eav pull", "none"]),
    "no results store": ("pull", [], ["one results store", "eav pull results --list", "none"]),
    "a prefix of no key": ("keys", ["optm"], ["optm", "eav keys"]),
    "a wrong key, with the nearest right one": ("train", [DEMO, "optim.lrr=1"], ["optim.lrr", "optim.lr"]),
    "a wrong value": ("train", [DEMO, "split.protocol=cross"], ["split.protocol", "subject_kfold"]),
    "heads that do not divide": ("train", [DEMO, "fusion.heads=7"], ["heads is 7", "64"]),
    "no such data": ("check", [DEMO, "data.root=/nowhere"], ["/nowhere"]),
    "a folder that is no EAV": ("check", [DEMO, f"data.root={REPOSITORY}"], ["subject"]),
    "no shards yet": ("train", [DEMO, "store.shards=/nowhere"], ["preprocess"]),
    "more workers than CPUs": (
        "train",
        [DEMO, "runtime.workers=4096", "optim.batch=4096"]
        + [f"train.encoders.{m}.batch=4096" for m in ("audio", "eeg", "video")],
        ["4096", "this machine has", "set runtime.workers"],
    ),
    "a batch that the workers do not share": ("train", [DEMO, "optim.batch=33"], ["optim.batch is 33"]),
    "a dashboard for the network": (
        "train",
        [DEMO, "runtime.dashboard=true", "runtime.dashboard_host=0.0.0.0"],
        ["runtime.dashboard_host", "runtime.dashboard"],
    ),
    "a change that is not YAML": ("train", [DEMO, "data.modalities=[eeg"], ["data.modalities", "YAML"]),
    "a window that is longer than the model's": (
        "train",
        [DEMO, "preprocessing.window_s=10"],
        ["preprocessing.window_s is 10", "model.audio.max_length", "998"],
    ),
    "a number that is none": ("demo", [DEMO, "--subjects", "x"], ["--subjects", "valid integer", "eav demo --help"]),
    "a number that is missing": ("demo", [DEMO, "--per-class"], ["--per-class", "requires an argument"]),
    "a number that is too small": ("demo", [DEMO, "--subjects=0"], ["--subjects", "greater than or equal to 1"]),
    "an unknown option": ("pull", ["results", "--best"], ["--best", "--next-best", "eav pull --help"]),
    "an option that is missing": ("adapt", [DEMO, "--checkpoint", "best"], ["--subject", "eav adapt --help"]),
    "a change that a command does not take": ("pull", ["results", "optim.lr=1"], ["optim.lr", "eav pull"]),
    "a store that is none": ("pull", ["/nowhere"], ["/nowhere"]),
    "a store of an unknown kind": ("pull", ["http://x"], ["http://x", "s3://", "gs://"]),
    "a remote folder to pull to": ("pull", ["results", "--to", "s3://lab/best"], ["--to is s3://lab/best", "disk"]),
    "a remote file of predictions": ("predict", ["best", "--out=s3://lab/p.csv"], ["--out is s3://lab/p.csv", "disk"]),
    "a checkpoint that is none": ("predict", ["/nowhere/best", "data.root=x"], ["/nowhere/best"]),
    "not a change": ("predict", ["a", "b"], ["exactly one checkpoint"]),
    "an evaluation of two": ("evaluate", [DEMO, DEMO], ["exactly one experiment", "got"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_that_names_the_way_out(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, words, expected = CASES[case]
    error = run_wrong([name, *words], capsys)
    for part in expected:
        assert part in error


def test_a_command_with_a_mistake_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    error = run_wrong(["tran"], capsys)
    assert "'tran'" in error and "'train'" in error and "eav --help" in error


def test_a_store_that_does_not_answer_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody")
    error = run_wrong(["pull", "s3://bucket?endpoint=http://127.0.0.1:9&retry_s=0.1"], capsys)
    assert "s3://bucket" in error and "error sending request" in error

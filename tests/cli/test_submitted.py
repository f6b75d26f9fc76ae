"""A command that `ray job submit` runs gets to its work, or names the path that is relative."""

import re
from typing import Any

import pytest

from eav_ray.cli.main import run_command
from tests.helpers.commands import list_shown_commands
from tests.helpers.paths import REPOSITORY

PAGES = [REPOSITORY / "README.md", REPOSITORY / "infra/README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SHOWN = [words for page in PAGES for words in list_shown_commands(page, "ray job submit") if "..." not in words]
WORK = {
    "baseline": "eav_ray.pipelines.evaluate.baseline.run_baselines",
    "check": "eav_ray.pipelines.preprocess.dataset_check.check_dataset",
    "evaluate": "eav_ray.pipelines.evaluate.evaluate.evaluate_checkpoint",
    "predict": "eav_ray.pipelines.inference.prediction_tables.predict_to_file",
    "preprocess": "eav_ray.pipelines.preprocess.preprocess.preprocess",
    "protocol": "eav_ray.pipelines.train.cross_validation.cross_validate",
    "pull": "eav_ray.pipelines.inference.pull.pull",
    "search": "eav_ray.pipelines.search.search.search_experiment",
    "train": "eav_ray.pipelines.train.train.train",
}
STORES = ["store.shards=/mnt/shards", "store.results=s3://lab/results", "store.cache=/tmp/cache"]
SUBMITTED = [
    *SHOWN,
    ["check", "demo", "data.root=/mnt/EAV"],
    ["preprocess", "demo", "data.root=/mnt/EAV", STORES[0]],
    ["train", "demo", "data.root=/mnt/EAV", *STORES],
    ["protocol", "demo", "data.root=/mnt/EAV", *STORES],
    ["baseline", "demo", "data.root=/mnt/EAV", *STORES],
    ["evaluate", "demo", "data.root=/mnt/EAV", "--checkpoint", "s3://lab/best", *STORES],
    ["predict", "s3://lab/best", "data.root=/mnt/new", "--out", "/mnt/predictions.csv"],
]


class Reached(Exception):
    """The command's own work would begin."""


def raise_reached(*_: Any, **__: Any) -> None:
    raise Reached


def submit(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command as `ray job submit` would, up to its own work."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(WORK[words[0]], raise_reached)
    return run_command(words)


def test_there_are_submitted_commands_in_the_texts() -> None:
    assert len(SHOWN) >= 3


def test_nothing_has_to_be_activated_for_the_commands_in_the_texts() -> None:
    """`ray` is that of `.venv`, and `python3`, which every system has, starts a job (test_interpreter.py)."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"^.*\bray job submit .* -- .*$", text, flags=re.MULTILINE):
            assert re.search(r"\.venv/bin/ray job submit .* -- +python3 jobs/\w+\.py ", line) or "`" in line, line


@pytest.mark.parametrize("words", SUBMITTED, ids=lambda words: " ".join(words[:2]))
def test_a_submitted_command_gets_to_its_work(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Reached):
        submit(words, monkeypatch)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["preprocess", "demo", "data.root=/mnt/EAV"], "store.shards"),
        (["check", "demo", "data.root=EAV"], "data.root"),
        (["train", "demo", "data.root=/mnt/EAV", *STORES[:2], "store.cache=cache"], "store.cache"),
        (["predict", "s3://lab/best", "data.root=/mnt/new"], "--out"),
        (["pull", "s3://lab/results"], "--to"),
    ],
)
def test_a_submitted_command_names_the_relative_path_that_it_uses(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert submit(words, monkeypatch) == 2
    error = capsys.readouterr().err
    assert re.match(rf"error: {named} is .*a submitted job runs in a temporary copy.*absolute path", error), error

"""An experiment is checked as a whole before anything starts, and one dotted key changes one thing."""

from pathlib import Path
from typing import Any

import pytest

from eav_ray.config import Choice, Experiment, build, digest, keys, load, override, parse_changes, to_dict
from eav_ray.errors import ConfigError

SHIPPED = sorted((Path(__file__).resolve().parents[1] / "jobs/experiments").glob("*.yaml"))


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    return {k: v for key, sub in tree.items() for k, v in flat(sub, f"{prefix}.{key}" if prefix else key).items()}


def test_there_are_experiments_to_check() -> None:
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_every_shipped_experiment_loads_and_survives_json(path: Path) -> None:
    experiment = load(path)
    assert build(to_dict(experiment), source="json") == experiment


@pytest.mark.parametrize("key", sorted(keys()))
def test_every_key_takes_its_own_default(key: str) -> None:
    assert override(Experiment(), {key: keys()[key][1]}) == Experiment()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "other"),
        ("seed", 7),
        ("optim.lr", 1e-2),
        ("data.modalities", ["eeg"]),
        ("model.eeg.depth", 3),
        ("train.encoders.video.epochs", 2),
        ("profile.eeg.low_hz", 1.0),
        ("search.sampler", "random"),
        ("runtime.bf16", True),
        ("store.results", "elsewhere"),
    ],
)
def test_an_override_changes_its_key_only(key: str, value: Any) -> None:
    before, after = flat(to_dict(Experiment())), flat(to_dict(override(Experiment(), {key: value})))
    assert {k for k in before | after if before.get(k) != after.get(k)} == {key}
    assert after[key] == value


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("optim.lrr", "optim.lr"),
        ("optim.epoch", "optim.epochs"),
        ("model.eeg.filter", "model.eeg.filters"),
        ("fold.protocl", "fold.protocol"),
        ("runtim.workers", "runtime"),
        ("train.encoders.video.bach", "train.encoders.video.batch"),
    ],
)
def test_a_wrong_key_is_answered_with_the_nearest_right_one(wrong: str, right: str) -> None:
    with pytest.raises(ConfigError, match=f'did you mean "{right}"'):
        override(Experiment(), {wrong: 1})


def test_a_key_below_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="optim.lr.peak"):
        override(Experiment(), {"optim.lr.peak": 1})


def test_all_problems_are_reported_at_once() -> None:
    changes = {"optim.lrr": 1, "optim.epochs": -1, "fold.protocol": "both", "fusion.heads": 3, "model.video.patch": 9}
    with pytest.raises(ConfigError) as caught:
        override(Experiment(), changes)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(changes)
    for word in ("optim.lrr", "optim.epochs", "fold.protocol", "fusion", "model.video"):
        assert any(word in line for line in lines)


def test_problems_between_sections_are_reported_together() -> None:
    changes = {"optim.batch": 7, "profile.video.size": 32, "search.space": {"seed": {"choice": [1]}}}
    with pytest.raises(ConfigError, match=r"(?s)image_size.*optim\.batch.*search\.space\.seed"):
        override(Experiment(), changes)


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"fusion.heads": 3}, "8"),
        ({"model.eeg.heads": 3}, "8"),
        ({"model.audio.heads": 5}, "12"),
        ({"model.video.heads": 5}, "12"),
    ],
)
def test_heads_that_do_not_divide_are_refused_with_those_that_do(changes: dict[str, Any], allowed: str) -> None:
    with pytest.raises(ConfigError, match=rf"use one of \[1, 2, .*\b{allowed}\b"):
        override(Experiment(), changes)


@pytest.mark.parametrize("heads", [1, 2, 4, 8, 16])
def test_every_head_count_that_divides_is_accepted(heads: int) -> None:
    assert override(Experiment(), {"fusion.heads": heads}).fusion.heads == heads


def test_segments_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="segments"):
        override(Experiment(), {"model.eeg.segments": 7})


@pytest.mark.parametrize("key", ["optim.batch", "train.encoders.audio.batch"])
def test_a_batch_that_the_workers_cannot_share_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is 32.*use a multiple of 3"):
        override(Experiment(), {"runtime.workers": 3})


def test_the_batch_of_an_encoder_that_is_not_used_does_not_matter() -> None:
    changes = {"data.modalities": ["eeg"], "train.encoders.video.batch": 7}
    assert override(Experiment(), changes).train.encoders.video.batch == 7


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "3.0e-4", "0.0003", ".0003"])
def test_numbers_are_numbers_however_they_are_written(text: str) -> None:
    changes = parse_changes([f"optim.lr={text}"])
    assert override(Experiment(), changes).optim.lr == 3e-4


def test_values_of_the_command_line_are_yaml() -> None:
    words = ["data.modalities=[eeg, audio]", "runtime.bf16=true", "optim.epochs=3", "data.root=a=b", "name=x"]
    assert parse_changes(words) == {
        "data.modalities": ["eeg", "audio"],
        "runtime.bf16": True,
        "optim.epochs": 3,
        "data.root": "a=b",
        "name": "x",
    }
    with pytest.raises(ConfigError, match="key=value"):
        parse_changes(["optim.lr"])


def test_the_dotted_keys_of_the_search_space_are_one_key_each() -> None:
    changes = parse_changes(["search.space.fusion.heads={choice: [2, 4]}"])
    space = override(Experiment(), changes).search.space
    assert space == Experiment().search.space | {"fusion.heads": Choice(choice=(2, 4))}


@pytest.mark.parametrize(
    "choice",
    [{}, {"low": 1}, {"low": 2, "high": 1}, {"choice": [1], "low": 0, "high": 1}, {"low": 0, "high": 1, "log": True}],
)
def test_a_search_dimension_is_a_choice_or_a_range(choice: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"search\.space"):
        override(Experiment(), {"search.space": {"optim.lr": choice}})


@pytest.mark.parametrize("text", ["", "- 1", "a: [", "optim: {lr: fast}"])
def test_a_file_is_an_experiment_or_a_config_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    if not text:
        assert load(path) == Experiment()
        return
    with pytest.raises(ConfigError, match="mine.yaml"):
        load(path)
    with pytest.raises(ConfigError, match="other.yaml"):
        load(tmp_path / "other.yaml")


def test_a_digest_depends_on_values_and_not_on_their_order() -> None:
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest(Experiment()) == digest(to_dict(Experiment()))
    assert digest(Experiment()) != digest(override(Experiment(), {"seed": 1}))

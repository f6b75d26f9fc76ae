"""An experiment is checked as a whole before anything starts, and one dotted key changes one thing."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eav_ray.config import (
    Experiment,
    SearchDimension,
    build_experiment,
    digest,
    list_experiment_names,
    list_keys,
    list_other_kinds,
    load_experiment,
    override,
    parse_changes,
    to_dict,
)
from eav_ray.config.digests import HashedParts, encode_parts
from eav_ray.config.encoders.bandpower import BandPowerConfig
from eav_ray.config.encoders.eav_transformer import EAVTransformerConfig
from eav_ray.config.encoders.eegformer import EEGformerConfig
from eav_ray.config.encoders.mfcc import MFCCConfig
from eav_ray.config.encoders.speech import SpeechConfig
from eav_ray.config.keys import format_value
from eav_ray.errors import ConfigError
from tests.helpers.paths import EXPERIMENTS, REPOSITORY

SHIPPED = sorted(EXPERIMENTS.glob("*.yaml"))
PAGES = [REPOSITORY / "README.md", REPOSITORY / "infra/README.md", *(REPOSITORY / "docs").glob("*.md")]
TEXTS = sorted([*(p for p in PAGES if p.name != "log.md"), *(REPOSITORY / "jobs").glob("*.py")])


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    return {k: v for key, sub in tree.items() for k, v in flat(sub, f"{prefix}.{key}" if prefix else key).items()}


def test_there_are_experiments_to_check() -> None:
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_every_shipped_experiment_loads_and_survives_json(path: Path) -> None:
    experiment = load_experiment(path)
    assert build_experiment(to_dict(experiment), source="json") == experiment


@pytest.mark.parametrize("key", sorted(list_keys()))
def test_every_key_takes_its_own_default(key: str) -> None:
    assert override(Experiment(), {key: list_keys()[key][1]}) == Experiment()


@pytest.mark.parametrize("key", sorted(list_keys()))
def test_a_file_that_gives_a_key_its_own_default_changes_no_other(key: str, tmp_path: Path) -> None:
    value = json.loads(json.dumps(list_keys()[key][1], default=to_dict))
    tree: Any = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    path = tmp_path / "e.yaml"
    path.write_text(json.dumps(tree))
    assert load_experiment(path) == Experiment()
    path.write_text("name: experiment")
    assert load_experiment(path, {key: value, "name": Experiment().name}) == Experiment()


def test_an_override_leaves_the_changes_that_it_is_given_alone() -> None:
    changes = {"model.audio": {"kind": "ast", "width": 24}, "model.audio.depth": 3}
    assert vars(override(Experiment(), changes).model["audio"])["depth"] == 3
    assert changes == {"model.audio": {"kind": "ast", "width": 24}, "model.audio.depth": 3}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "other"),
        ("seed", 7),
        ("optim.lr", 1e-2),
        ("data.modalities", ["eeg"]),
        ("model.eeg.depth", 3),
        ("train.encoders.video.epochs", 2),
        ("preprocessing.eeg.low_hz", 1.0),
        ("search.sampler", "random"),
        ("runtime.precision", "bf16"),
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
        ("split.protocl", "split.protocol"),
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
    changes = {"optim.lrr": 1, "optim.epochs": -1, "split.protocol": "both", "fusion.heads": 3, "model.video.patch": 9}
    with pytest.raises(ConfigError) as caught:
        override(Experiment(), changes)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(changes)
    for word in ("optim.lrr", "optim.epochs", "split.protocol", "fusion", "model.video"):
        assert any(word in line for line in lines)


def test_problems_between_sections_are_reported_together() -> None:
    changes = {"optim.batch": 7, "preprocessing.video.size": 32, "search.space": {"seed": {"choice": [1]}}}
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


def test_a_group_that_may_shrink_needs_a_batch_that_every_number_of_workers_divides() -> None:
    """32 windows: 2 and 4 workers share them, 3 do not."""
    with pytest.raises(ConfigError, match=r"optim.batch is 32, which 3 workers do not divide.*use a multiple of 12"):
        override(Experiment(), {"runtime.workers": 4, "runtime.min_workers": 2})
    assert override(Experiment(), {"runtime.workers": 2, "runtime.min_workers": 1}).runtime.min_group_size == 1
    with pytest.raises(ConfigError, match="min_workers is 3, more than workers=2"):
        override(Experiment(), {"runtime.min_workers": 3})


def test_the_batch_of_an_encoder_that_is_not_used_does_not_matter() -> None:
    changes = {"data.modalities": ["eeg"], "train.encoders.video.batch": 7}
    assert override(Experiment(), changes).train.encoders["video"].batch == 7


@pytest.mark.parametrize("text", ["3e-4", "3E-4", "3.0e-4", "0.0003", ".0003"])
def test_numbers_are_numbers_however_they_are_written(text: str) -> None:
    changes = parse_changes([f"optim.lr={text}"])
    assert override(Experiment(), changes).optim.lr == 3e-4


def test_values_of_the_command_line_are_yaml() -> None:
    words = ["data.modalities=[eeg, audio]", "runtime.offload=true", "optim.epochs=3", "data.root=a=b", "name=x"]
    assert parse_changes(words) == {
        "data.modalities": ["eeg", "audio"],
        "runtime.offload": True,
        "optim.epochs": 3,
        "data.root": "a=b",
        "name": "x",
    }
    with pytest.raises(ConfigError, match="key=value"):
        parse_changes(["optim.lr"])


@pytest.mark.parametrize("word", ["data.modalities=[eeg", "name='x", "data.root=a: b: c", "name=\x1b"])
def test_a_value_that_is_not_yaml_is_refused_by_name(word: str) -> None:
    with pytest.raises(ConfigError, match="YAML") as caught:
        parse_changes([word])
    assert str(caught.value).startswith(word.partition("=")[0]) and "\n" not in str(caught.value)


def test_the_dotted_keys_of_the_search_space_are_one_key_each() -> None:
    changes = parse_changes(["search.space.fusion.heads={choice: [2, 4]}"])
    space = override(Experiment(), changes).search.space
    assert space == Experiment().search.space | {"fusion.heads": SearchDimension(choice=(2, 4))}


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
        assert load_experiment(path) == Experiment()
        return
    with pytest.raises(ConfigError, match="mine.yaml"):
        load_experiment(path)
    with pytest.raises(ConfigError, match="other.yaml"):
        load_experiment(tmp_path / "other.yaml")


@pytest.mark.parametrize("text", ["2026-11-22", "2026-13-45"])
def test_a_date_is_a_name_like_any_other(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: {text}\n")
    assert load_experiment(path).name == text
    assert override(Experiment(), parse_changes([f"name={text}"])).name == text


@pytest.mark.parametrize(
    "content",
    [
        b"name: caf\xe9\n",
        b"\xff\xfen\x00",
        b"name: \x00\n",
        b"1: x\n",
        b"data: {1: x}\n",
        b"? [a]\n: x\n",
        b"name: !!binary aGk=\n",
        b"name: !!timestamp 2026-13-45\n",
    ],
)
def test_a_file_that_holds_something_odd_is_a_config_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="mine.yaml"):
        load_experiment(path, {"seed": 1})


def test_a_change_to_one_of_two_aliased_sections_changes_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("train: {encoders: {audio: &same {lr: 0.1}, video: *same}}")
    encoders = load_experiment(path, {"train.encoders.audio.lr": 0.2}).train.encoders
    assert (encoders["audio"].lr, encoders["video"].lr) == (0.2, 0.1)


def test_text_outside_of_ascii_is_read_as_utf8(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes("data: {root: /Daten/Gefühle}".encode())
    assert load_experiment(path).data.root == "/Daten/Gefühle"


def test_audio_that_the_model_would_cut_off_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"preprocessing\.window_s is 10.*model\.audio\.max_length.*at least 998"):
        override(Experiment(), {"preprocessing.window_s": 10})
    with pytest.raises(ConfigError, match="at least 498"):
        override(Experiment(), {"model.audio.max_length": 497})
    assert override(Experiment(), {"model.audio.max_length": 498})
    assert override(Experiment(), {"preprocessing.window_s": 10, "model.audio.max_length": 998})
    assert override(Experiment(), {"preprocessing.window_s": 10, "data.modalities": ["eeg", "video"]})


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_what_the_texts_name_is_there(path: Path) -> None:
    text = path.read_text()
    for name in re.findall(r"\bjobs/[\w./-]*\w", text):
        assert (REPOSITORY / name).exists(), name
    for name in re.findall(r"[\w./-]+\.yaml\b", text):
        assert any((folder / name).exists() for folder in (REPOSITORY, EXPERIMENTS)), name
    known = {*list_keys(), *(key for _, keys in list_other_kinds() for key in keys)}
    for key in re.findall(r"(?<![\w.{])([a-z_]+(?:\.[a-z_]+)+)=", text):
        assert key.removeprefix("search.space.") in known, key


def test_an_experiment_is_given_by_its_name_or_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list_experiment_names() == [path.stem for path in SHIPPED]
    for path in SHIPPED:
        assert load_experiment(path.stem) == load_experiment(path) == load_experiment(str(path))
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "mine.yaml"):
        (tmp_path / name).write_text("name: mine")
    assert load_experiment("demo").name == "demo" and load_experiment("./demo").name == "mine"
    assert load_experiment("mine.yaml").name == load_experiment(tmp_path / "mine.yaml").name == "mine"
    with pytest.raises(
        ConfigError, match=r"^no experiment fuson; did you mean \"fusion\"\?; give one of cremad, demo, "
    ):
        load_experiment("fuson")
    with pytest.raises(ConfigError, match="^no experiment mine; give one of .*, or the path of a YAML file$"):
        load_experiment("mine")


def test_there_are_paths_and_keys_in_the_texts() -> None:
    named = "".join(path.read_text() for path in TEXTS)
    assert "eav_ray/experiments/fusion.yaml" in named and "data.root=/" in named


def test_a_digest_depends_on_values_and_not_on_their_order() -> None:
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert HashedParts(1, ["a"]).digest(encode_parts(2, {"c": 3}), 4) == digest(1, ["a"], 2, {"c": 3}, 4)
    assert digest(Experiment()) == digest(to_dict(Experiment()))
    assert digest(Experiment()) != digest(override(Experiment(), {"seed": 1}))


def test_another_kind_of_encoder_is_another_section() -> None:
    small = override(Experiment(), {"model.eeg.filters": 8})
    other = override(small, {"model.eeg.width": 32, "model.eeg.kind": "bandpower"})
    assert other.model["eeg"] == BandPowerConfig(width=32)
    assert override(other, {"model.eeg.segments": 4}).model["eeg"] == BandPowerConfig(width=32, segments=4)
    assert override(small, {"model.eeg.kind": "eegformer"}) == small
    assert build_experiment(to_dict(other), source="json") == other


def test_a_file_without_a_kind_means_the_default(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: {eeg: {filters: 8}, audio: {kind: mfcc, width: 32}}")
    assert load_experiment(path).model["eeg"] == EEGformerConfig(filters=8)
    assert load_experiment(path).model["audio"] == MFCCConfig(width=32)
    assert load_experiment(path, {"model.eeg.kind": "eav_transformer"}).model["eeg"] == EAVTransformerConfig()


def test_a_wrong_kind_or_key_of_a_kind_is_a_line_with_what_is_allowed() -> None:
    kinds = "bandpower, braindecode, covariance, eav_transformer, eegformer"
    with pytest.raises(ConfigError, match=rf"model\.eeg\.kind is 'eegnet'; use one of {kinds}"):
        override(Experiment(), {"model.eeg.kind": "eegnet"})
    for key, wrong, right in (
        ("model.audio.kind", "mffc", "mfcc"),
        ("fusion.kind", "meen", "mean"),
        ("split.protocol", "looso", "loso"),
        ("preprocessing.eeg.kind", "clen", "clean"),
    ):
        with pytest.raises(ConfigError, match=rf"{key} is '{wrong}'; use one of .*; did you mean \"{right}\"\?"):
            override(Experiment(), {key: wrong})
    with pytest.raises(ConfigError, match=r"runtime.zero_stage is 7; use one of 0, 1, 2, 3$"):
        override(Experiment(), {"runtime.zero_stage": 7})


def test_labels_are_true_as_their_help_writes_it() -> None:
    assert override(Experiment(), {"data.labels": True}) == Experiment()
    with pytest.raises(ConfigError, match="data.labels is False; use one of true, permuted"):
        override(Experiment(), {"data.labels": False})


def test_a_wrong_key_or_size_of_a_kind_is_a_line() -> None:
    with pytest.raises(ConfigError, match=r'"model\.audio\.coeficients".*did you mean "model\.audio\.coefficients"'):
        override(Experiment(), {"model.audio.kind": "mfcc", "model.audio.coeficients": 3})
    with pytest.raises(ConfigError, match=r"model\.eeg: .*heads is 7, which does not divide width 60"):
        override(Experiment(), {"model.eeg.kind": "eav_transformer", "model.eeg.heads": 7})


def test_the_key_of_another_kind_is_answered_by_this_kinds_keys() -> None:
    with pytest.raises(
        ConfigError, match=r'"model\.eeg\.filters" is not a key of model\.eeg\.kind=bandpower'
    ) as caught:
        override(Experiment(), {"model.eeg.kind": "bandpower", "model.eeg.filters": 4})
    assert 'did you mean "model.eeg.filters"' not in str(caught.value)


@pytest.mark.parametrize("section", [None, "bandpower", {"kind": None}, 3])
def test_a_section_that_is_none_is_told_what_it_may_be(section: Any) -> None:
    with pytest.raises(ConfigError, match=r"model\.eeg.*bandpower, braindecode, covariance, eav_transformer"):
        override(Experiment(), {"model.eeg": section})


@pytest.mark.parametrize("text", ["", "train:", "train: {encoders: }", "train: {encoders: {audio: }}"])
def test_defaults_of_a_place_survive_an_empty_section_and_a_section_given_as_a_whole(text: str, tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(text)
    default = Experiment().train.encoders["audio"]
    for change in ({"train.encoders.audio.lr": 1e-3}, {"train.encoders.audio": {"lr": 1e-3}}):
        assert load_experiment(path, change).train.encoders["audio"] == replace(default, lr=1e-3)
    assert load_experiment(path) == Experiment()


def test_an_empty_section_of_a_file_takes_changes(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model:\n")
    assert load_experiment(path, {"model.eeg.kind": "bandpower"}).model["eeg"] == BandPowerConfig()


def test_heads_of_a_single_token_concern_the_modalities_together_only() -> None:
    e = override(Experiment(), {"fusion.kind": "single_token", "fusion.heads": 7, "model.eeg.kind": "eav_transformer"})
    for m in ("audio", "eeg", "video"):
        assert replace(e, data=replace(e.data, modalities=(m,))).fusion.heads == 7


@pytest.mark.parametrize(("title", "table"), list_other_kinds(), ids=lambda x: x if isinstance(x, str) else "")
def test_every_key_of_every_kind_takes_its_own_default(title: str, table: dict[str, tuple[str, Any, str]]) -> None:
    key, _, kind = title.partition("=")
    e = override(Experiment(), {key: kind} | ({"data.targets.columns": ["valence"]} if kind == "mean" else {}))
    for name, (_, default, _) in table.items():
        assert override(e, {name: default}) == e


@pytest.mark.parametrize("changes", [{"runtime.engine": "torch", "runtime.zero_stage": 1}, {"runtime.zero_stage": 0}])
def test_offload_without_zero_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="runtime.offload needs runtime.engine=deepspeed and runtime.zero_stage of"):
        override(Experiment(), {"runtime.offload": True} | changes)
    assert override(Experiment(), {"runtime.offload": True, "runtime.zero_stage": 1}).runtime.offload


def test_a_key_of_names_and_values_is_no_section_for_each_name() -> None:
    table = list_keys()
    assert table["preprocessing.features"][0] == table["search.space"][0] == "a section for each name"
    (settings,) = {row[0] for key, row in list_keys(SpeechConfig(), "model.audio.").items() if key.endswith("settings")}
    assert settings == "names and their values" and format_value({}) == "{}"

"""Encoders of a comparison are read from short forms and from YAML, and what is wrong with them is said at once."""

from pathlib import Path

import pytest

from eav_ray.config import Experiment, override
from eav_ray.config.encoders.braindecode import BraindecodeConfig
from eav_ray.errors import ConfigError
from eav_ray.evaluation.encoder_variants import EncoderVariant, choose_references, read_encoder_variants
from tests.helpers.paths import REPOSITORY

E = override(Experiment(), {"data.modalities": ["audio", "eeg"], "model.eeg.width": 32, "model.eeg.heads": 2})
WITH_FACE = override(
    Experiment(), {"preprocessing.features": {"face": {"columns": ["AU01"]}}, "data.modalities": ["face"]}
)


def read(text: str, base: Experiment = E) -> list[EncoderVariant]:
    return read_encoder_variants(text, base)


def write(folder: Path, text: str) -> str:
    path = folder / "encoders.yaml"
    path.write_text(text)
    return str(path)


def test_a_short_form_names_a_kind_and_its_network() -> None:
    found = read("eegformer, bandpower,braindecode:EEGNet,mfcc,speech:hubert,eeg")
    assert [(v.name, v.modality) for v in found] == [
        ("eegformer", "eeg"),
        ("bandpower", "eeg"),
        ("braindecode:EEGNet", "eeg"),
        ("mfcc", "audio"),
        ("speech:hubert", "audio"),
        ("eeg", "eeg"),
    ]
    made = [v.apply_to(E, 7) for v in found]
    assert [e.data.modalities for e in made] == [(v.modality,) for v in found] and {e.seed for e in made} == {7}
    # The experiment's own kind has the experiment's own settings, another has those of its kind.
    assert made[0].model["eeg"] == made[5].model["eeg"] == E.model["eeg"]
    assert made[1].model["eeg"].kind == "bandpower" and made[1].model["eeg"].width == 64
    assert made[2].model["eeg"] == BraindecodeConfig(name="EEGNet")
    assert getattr(made[4].model["audio"], "architecture", "") == "hubert"


def test_a_modality_of_given_features_has_its_kinds() -> None:
    found = read("face,face:signal", WITH_FACE)
    assert [(v.name, v.modality) for v in found] == [("face", "face"), ("face:signal", "face")]
    assert read("features", WITH_FACE)[0].changes == {"model.face.kind": "features"}


def test_a_file_names_variants_with_their_settings(tmp_path: Path) -> None:
    text = """
- {name: EEGNet, model.eeg: {kind: braindecode, name: EEGNet, settings: {F1: 4}}, train.encoders.eeg: {lr: 1.0e-3}}
- {name: nested, model: {eeg: {kind: bandpower}}, train: {encoders: {eeg: {epochs: 3, batch: 16}}}}
- {name: dotted, model.eeg.dropout: 0.1}
- bandpower
"""
    found = read(write(tmp_path, text))
    assert found[0].changes["model.eeg.settings"] == {"F1": 4}
    first, nested, dotted, _ = [v.apply_to(E, 0) for v in found]
    assert first.model["eeg"] == BraindecodeConfig(name="EEGNet", settings={"F1": 4})
    assert first.train.encoders["eeg"].lr == 1e-3
    assert first.train.encoders["eeg"].epochs == E.train.encoders["eeg"].epochs
    assert (nested.model["eeg"].kind, nested.train.encoders["eeg"].epochs) == ("bandpower", 3)
    assert dotted.model["eeg"].width == 32  # a change of what the experiment has


def test_the_example_is_read_and_can_be_made() -> None:
    found = read(str(REPOSITORY / "examples" / "encoders.yaml"))
    assert [v.name for v in found] == ["bandpower", "EEGNet", "EEGNet slowly"]
    slowly = found[2].apply_to(E, 0)
    assert slowly.train.encoders["eeg"].lr == 1e-4 and slowly.model["eeg"] == BraindecodeConfig(name="EEGNet")


def test_another_network_of_the_experiments_kind_does_not_inherit_its_settings(tmp_path: Path) -> None:
    base = override(E, {"model.eeg": {"kind": "braindecode", "name": "EEGNet", "settings": {"F1": 4}}})
    same, other = read("braindecode:EEGNet,braindecode:ShallowFBCSPNet", base)
    assert same.apply_to(base, 0).model["eeg"] == base.model["eeg"]
    assert other.apply_to(base, 0).model["eeg"] == BraindecodeConfig(name="ShallowFBCSPNet")
    text = "[{name: a, model.eeg: {name: ShallowFBCSPNet, hz: 100}}]"
    (changed,) = read(write(tmp_path, text), base)
    assert changed.apply_to(base, 0).model["eeg"] == BraindecodeConfig(name="ShallowFBCSPNet", hz=100)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "--encoders names no encoder"),
        ("bandpwer", 'bandpwer, which is no kind of encoder; use any of .*did you mean "bandpower"'),
        ("eeg:mfcc", "names eeg:mfcc, but eeg has no kind mfcc; use bandpower"),
        ("bandpower:EEGNet", "bandpower is one network; leave out :EEGNet"),
        ("vit", r"names vit, which reads video, but data.modalities is \[audio, eeg\]"),
        ("video", "names video, which reads video, but data.modalities"),
        ("bandpower,bandpower", 'two encoders have the name "bandpower"'),
        ("nosuch.yaml", "cannot read nosuch.yaml"),
    ],
)
def test_a_word_that_is_wrong_is_one_line(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as error:
        read(text)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1", "must hold a list of encoders"),
        ("- {model.eeg.kind: bandpower}", "an encoder is .*; give a kind, or a section such as"),
        ("- 3", "an encoder is 3; give a kind"),
        ("- {name: a, optim.lr: 1}", 'the encoder "a" changes optim.lr; only keys under model and train.encoders'),
        ("- {name: a, model.eeg.width: 1, model.audio.width: 1}", 'the encoder "a" has keys of eeg, audio; give'),
        ("- {name: a}", 'the encoder "a" has keys of none'),
        ("- {name: a, model.eg.width: 1}", 'the encoder "a" has keys of eg;'),
        ("- {name: a, model.video.width: 1}", "names a, which reads video"),
    ],
)
def test_an_entry_that_is_wrong_is_one_line(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=problem) as error:
        read(write(tmp_path, text))
    assert len(str(error.value).splitlines()) == 1


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        read("bandpwer,eeg:mfcc,bandpower")
    assert len(str(error.value).splitlines()) == 2


def test_a_variant_that_cannot_be_made_names_itself(tmp_path: Path) -> None:
    (variant,) = read(write(tmp_path, "[{name: a, model.eeg: {kind: bandpower, widht: 3}}]"))
    with pytest.raises(ConfigError, match='^the encoder "a" cannot be compared: "model.eeg.widht" is not a key of '):
        variant.apply_to(E, 0)


def test_each_modality_has_a_reference() -> None:
    variants = read("eegformer,mfcc,bandpower,ast")
    assert choose_references(variants, ()) == {"eeg": "eegformer", "audio": "mfcc"}
    assert choose_references(variants, ["ast"]) == {"eeg": "eegformer", "audio": "ast"}
    with pytest.raises(ConfigError, match='--reference is bandpwer; use one of .*did you mean "bandpower"'):
        choose_references(variants, ["bandpwer"])
    with pytest.raises(ConfigError, match="names two encoders of eeg"):
        choose_references(variants, ["bandpower", "eegformer"])

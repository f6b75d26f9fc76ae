"""An exported folder is the checkpoint with a description beside it, and names no folder of this machine."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import eav_ray
from eav_ray.cli.main import run_command
from eav_ray.config import Experiment, override
from eav_ray.errors import ConfigError, DataError
from eav_ray.pipelines.inference.export import export_checkpoint
from eav_ray.storage import COMMIT, Store
from eav_ray.storage.published_weights import describe_starting_weights
from eav_ray.training.checkpoint import OpenedCheckpoint, open_checkpoint, open_finished_checkpoint
from eav_ray.training.checkpoint_files import STARTING_WEIGHTS, Checkpoint
from tests.helpers.checkpoints import save_checkpoint
from tests.helpers.paths import REPOSITORY
from tests.helpers.s3_servers import open_conditional_server
from tests.helpers.serving import AUDIO_HZ, EEG_HZ, EXPERIMENT, Sent, make_checkpoint, make_untrained_checkpoint

EXPORTED = {"config.json", "preprocessing.json", "model.safetensors", "README.md", "COMMIT"}
EXPORTED |= {f"{name}.json" for name in ("experiment", "state", "split", "metrics", "versions")}
WITHOUT_RAY = """
import runpy, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ImportError(f"{name} is blocked")
        return None

sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def save(folder: Path, checkpoint: Checkpoint | None = None) -> OpenedCheckpoint:
    return save_checkpoint(Store(folder / "results"), checkpoint or make_checkpoint())


def predict(folder: str | Path) -> eav_ray.Prediction:
    sent = Sent(10.0)
    pictures = np.random.default_rng(0).integers(0, 256, (50, 48, 64, 3)).astype(np.uint8)
    predictor = eav_ray.Predictor(folder, device="cpu")
    eeg, names = sent.eeg_CT, predictor.eeg_channels
    return predictor.predict(
        eeg=eeg, eeg_hz=EEG_HZ, eeg_channels=names, audio=sent.audio_T, audio_hz=AUDIO_HZ, video=pictures, video_fps=5
    )


def read_head(folder: str | Path) -> dict[str, Any]:
    """The part of the card that the hub reads."""
    text = (Path(folder) / "README.md").read_text()
    return yaml.safe_load(text.split("---\n")[1])


def test_what_is_exported_predicts_the_same_bits(tmp_path: Path) -> None:
    checkpoint = save(tmp_path)
    exported = export_checkpoint(checkpoint, str(tmp_path / "folder"))
    assert {path.name for path in Path(exported.path).iterdir()} == EXPORTED
    assert predict(exported.path) == predict(checkpoint.path)
    opened = open_finished_checkpoint(exported.path)
    assert set(opened.commit.files) == EXPORTED - {COMMIT, "README.md"}  # people write their own words into a card
    assert opened.read_files()["model.safetensors"] == checkpoint.read_files()["model.safetensors"]
    again = export_checkpoint(opened, str(tmp_path / "again"))
    assert Store(tmp_path).read("folder/experiment.json") == Store(tmp_path).read("again/experiment.json")
    assert predict(again.path) == predict(checkpoint.path)


def test_the_description_says_what_a_program_has_to_give(tmp_path: Path) -> None:
    export_checkpoint(save(tmp_path), str(tmp_path / "folder"))
    config = Store(tmp_path).read_json("folder/config.json")
    assert list(config["modalities"]) == sorted(config["modalities"]) == ["audio", "eeg", "video"]
    eeg, video = config["modalities"]["eeg"], config["modalities"]["video"]
    assert eeg["shape"] == [30, 500] and eeg["axes"] == ["channel", "sample"] and eeg["channels"][:2] == ["Fp1", "Fp2"]
    assert (eeg["unit"], eeg["hz"], eeg["encoder"]["kind"]) == ("microvolt", 100, "eegformer")
    assert (video["shape"], video["dtype"], video["hz"]) == ([5, 32, 32, 3], "uint8", 1)
    assert config["classes"] == list(make_checkpoint().state.classes) and config["targets"] == []
    stored = Store(tmp_path).read_json("folder/preprocessing.json")["preprocessing"]
    assert override(EXPERIMENT, {"preprocessing": stored}).preprocessing == EXPERIMENT.preprocessing


def test_given_features_are_described(tmp_path: Path) -> None:
    given = {"preprocessing.features": {"face": {"width": 3, "steps": 2}}, "data.modalities": ["face"]}
    experiment = override(Experiment(), given)
    export_checkpoint(save(tmp_path, make_untrained_checkpoint(experiment)), str(tmp_path / "folder"))
    config = Store(tmp_path).read_json("folder/config.json")
    assert config["modalities"]["face"]["shape"] == [2, 3] and config["modalities"]["face"]["hz"] == 0.4
    assert config["fusion"] is None


def test_no_folder_of_this_machine_is_in_what_is_exported(tmp_path: Path) -> None:
    weights = tmp_path / "secret" / "w"
    changes = {
        "data.root": f"{tmp_path}/secret/EAV",
        "store.results": "s3://secret/results",
        "store.mlflow": "http://secret:5000",
        "runtime.address": "secret:6379",
        "search.storage": f"sqlite:///{tmp_path}/secret/search.db",
        "model.audio.weights": str(weights),
    }
    exported = export_checkpoint(
        save(tmp_path, make_untrained_checkpoint(override(EXPERIMENT, changes))), str(tmp_path / "folder")
    )
    for path in Path(exported.path).iterdir():
        assert b"secret" not in path.read_bytes(), path
    experiment = open_checkpoint(exported.path).experiment
    assert experiment.data.root == "EAV" and vars(experiment.model["audio"])["weights"] == "w"


@pytest.mark.parametrize("content", ["file", "folder"])
def test_what_is_there_is_never_replaced(tmp_path: Path, content: str) -> None:
    target = tmp_path / "folder"
    target.write_text("mine") if content == "file" else target.mkdir()
    (target / "mine").write_text("mine") if content == "folder" else None
    with pytest.raises(ConfigError, match="folder exists and is not empty; give another folder with --to"):
        export_checkpoint(save(tmp_path), str(target))
    assert (target if content == "file" else target / "mine").read_text() == "mine"


def test_nothing_appears_of_a_damaged_checkpoint(tmp_path: Path) -> None:
    checkpoint = save(tmp_path)
    path = Path(checkpoint.path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="is damaged"):
        export_checkpoint(checkpoint, str(tmp_path / "folder"))
    assert {each.name for each in tmp_path.iterdir()} == {"results"}


def test_nothing_appears_where_it_cannot_be_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = save(tmp_path)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    monkeypatch.setattr(Store, "write", lambda self, name, data: Path(self.root, name).write_bytes(data))
    monkeypatch.setattr(Store, "commit", lambda self, prefix, files: Path(self.root, prefix).mkdir())
    with pytest.raises(DataError, match="cannot write .*folder: No space left on device"):
        export_checkpoint(checkpoint, str(tmp_path / "folder"))
    assert {each.name for each in tmp_path.iterdir()} == {"results"}


def test_the_card_names_the_licence_of_the_weights_that_it_started_from(tmp_path: Path) -> None:
    weights = tmp_path / "weights" / "lab" / "model"
    weights.mkdir(parents=True)
    notes = '{"format": 1, "name": "lab/model", "revision": "0123456789abcdef", "licence": "cc-by-nc-4.0", '
    (weights / "weights.json").write_text(notes + '"files": {}, "n_bytes": 0}')
    experiment = override(EXPERIMENT, {"model.audio.weights": str(weights)})
    made = make_untrained_checkpoint(experiment)
    made.metrics[STARTING_WEIGHTS] = describe_starting_weights(experiment)
    weights.joinpath("weights.json").unlink()  # what is known was noted when it was trained
    exported = export_checkpoint(save(tmp_path, made), str(tmp_path / "folder"))
    line = "audio: lab/model at 0123456789ab, licence cc-by-nc-4.0: NOT FOR COMMERCIAL USE"
    assert any(each.startswith(line) for each in exported.lines)
    head, text = read_head(exported.path), Path(exported.path, "README.md").read_text()
    assert (
        head["license"] == "cc-by-nc-4.0" and head["base_model"] == ["lab/model"] and "non-commercial" in head["tags"]
    )
    assert f"- {line}" in text


def test_the_card_of_a_model_from_random_values_claims_nothing(tmp_path: Path) -> None:
    exported = export_checkpoint(save(tmp_path), str(tmp_path / "folder"))
    head, text = read_head(exported.path), Path(exported.path, "README.md").read_text()
    assert head["license"] == "unknown" and head["library_name"] == "eav-ray" and "model-index" not in head
    assert "Not tested" in text and "trained from random values" in text


def test_weights_that_were_not_fetched_have_no_known_licence(tmp_path: Path) -> None:
    experiment = override(EXPERIMENT, {"model.audio.weights": str(tmp_path / "own")})
    exported = export_checkpoint(save(tmp_path, make_untrained_checkpoint(experiment)), str(tmp_path / "folder"))
    assert read_head(exported.path)["license"] == "unknown"
    assert "audio: own, licence not known, ask their authors" in exported.lines


@pytest.fixture
def bucket() -> Iterator[str]:
    with open_conditional_server() as address:
        yield f"s3://lab/results?endpoint={address}"


def test_a_training_in_an_object_store_is_exported_by_its_name(
    tmp_path: Path, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(Store(bucket), make_checkpoint())
    assert run_command(["export", "tiny", f"store.results={bucket}", "--to", str(tmp_path / "folder")]) == 0
    assert f"exported: {tmp_path}/folder" in capsys.readouterr().out
    assert predict(tmp_path / "folder").used == ("audio", "eeg", "video")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "give exactly one checkpoint"),
        (["nosuch"], "no checkpoint nosuch"),
        (["tiny", "optim.lr=1"], "optim.lr=... is given, but an export changes nothing"),
        (["tiny", "--to", "s3://lab/folder"], "--to is s3://lab/folder; give a path on a disk"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path,
    words: list[str],
    error: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run_command(["export", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {error}")


def test_the_script_predicts_raw_arrays_where_ray_is_not_installed(tmp_path: Path) -> None:
    script = REPOSITORY / "examples" / "predict_without_ray.py"
    assert len(script.read_text().splitlines()) <= 30
    exported = export_checkpoint(save(tmp_path), str(tmp_path / "folder"))
    command = [sys.executable, "-c", WITHOUT_RAY, str(script), exported.path]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert re.match(r"\w+ by audio, eeg, video; 2 windows\n", done.stdout)
    shares = [float(share) for share in re.findall(r"(\d\.\d{4})$", done.stdout, re.MULTILINE)]
    assert len(shares) == 5 and sum(shares) == pytest.approx(1, abs=1e-3)

"""An exported folder predicts by onnxruntime what the checkpoint does, without torch where graphs start at windows."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import eav_ray
from eav_ray.config import override
from eav_ray.errors import ConfigError, DataError
from eav_ray.evaluation.onnx_model import OnnxModel
from eav_ray.onnx_predictor import OnnxPredictor
from eav_ray.pipelines.inference.export import export_checkpoint
from eav_ray.storage import Store
from eav_ray.training.checkpoint import OpenedCheckpoint, build_trained_model
from tests.helpers.checkpoints import save_checkpoint
from tests.helpers.paths import REPOSITORY
from tests.helpers.serving import AUDIO_HZ, EEG_HZ, EXPERIMENT, Sent, make_checkpoint, make_untrained_checkpoint

TOLERANCE = 1e-4
SENT = Sent(20.0)
PICTURES = np.random.default_rng(0).integers(0, 256, (100, 48, 64, 3)).astype(np.uint8)
RECORDING: dict[str, dict[str, Any]] = {
    "audio": {"audio": SENT.audio_T, "audio_hz": AUDIO_HZ},
    "eeg": {"eeg": SENT.eeg_CT, "eeg_hz": EEG_HZ},
    "video": {"video": PICTURES, "video_fps": 5},
}
WITHOUT_TORCH = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "torch"):
            raise ImportError(f"{name} is blocked")
        return None

sys.meta_path.insert(0, Blocker())
import json
import numpy as np
from eav_ray.onnx_predictor import OnnxPredictor
given = np.load(sys.argv[2])
found = OnnxPredictor(sys.argv[1]).predict(eeg=given["eeg"], eeg_hz=500, video=given["video"], video_fps=5)
print(json.dumps(found.probabilities))
"""


def train_checkpoint(folder: Path) -> OpenedCheckpoint:
    """A model of all three modalities after some steps on noise: its logits are not those of its initial values."""
    made = make_checkpoint()
    model = build_trained_model(made)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for _ in range(6):
        inputs = {
            "audio": 0.1 * torch.randn(8, 80_000),
            "eeg": 20 * torch.randn(8, 30, 500),
            "video": torch.randint(0, 256, (8, 5, 32, 32, 3), dtype=torch.uint8),
        }
        output = model(inputs, torch.ones(8, 3, dtype=torch.bool))
        label = torch.arange(8) % 5
        losses = [
            torch.nn.functional.cross_entropy(x, label) for x in (output.logits_BK, *output.unimodal_logits.values())
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
    made.weights.update({name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()})
    return save_checkpoint(Store(folder), made)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("onnx")
    yield Path(export_checkpoint(train_checkpoint(folder / "results"), str(folder / "folder"), onnx=True).path)


def list_numbers(prediction: eav_ray.Prediction) -> np.ndarray:
    parts = [prediction, *prediction.windows]
    rows = [
        [*p.probabilities.values(), *p.weights.values(), *p.corrected_weights.values()]
        + [share for m in p.by_modality.values() for share in m.values()]
        for p in parts
    ]
    return np.array(rows, dtype=float)


@pytest.mark.slow
@pytest.mark.parametrize("names", [("audio", "eeg", "video"), ("audio",), ("eeg", "video")], ids=",".join)
def test_a_recording_is_predicted_as_by_torch(exported: Path, names: tuple[str, ...]) -> None:
    recording = {key: value for name in names for key, value in RECORDING[name].items()}
    found, expected = OnnxPredictor(exported).predict(**recording), eav_ray.Predictor(exported).predict(**recording)
    assert found.used == expected.used == names and found.not_used == expected.not_used
    assert len(found.windows) == 4 and found.predicted == expected.predicted
    np.testing.assert_allclose(list_numbers(found), list_numbers(expected), rtol=0, atol=TOLERANCE)
    assert np.ptp(list_numbers(found)[:, :5]) > 0.01  # it tells windows apart


@pytest.mark.slow
def test_it_runs_where_there_is_no_torch(exported: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "given.npz", eeg=SENT.eeg_CT, video=PICTURES)
    command = [sys.executable, "-c", WITHOUT_TORCH, str(exported), str(tmp_path / "given.npz")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = eav_ray.Predictor(exported).predict(**RECORDING["eeg"], **RECORDING["video"])
    assert json.loads(done.stdout) == pytest.approx(expected.probabilities, abs=TOLERANCE)


@pytest.mark.slow
def test_the_graphs_say_what_they_take(exported: Path) -> None:
    tree = json.loads((exported / "onnx" / "graph.json").read_text())
    assert tree["modalities"] == ["audio", "eeg", "video"] and set(tree["fusion"]["inputs"]) > {"present", "eeg.tokens"}
    eeg, audio = tree["encoders"]["eeg"], tree["encoders"]["audio"]
    assert eeg["starts_at"] == "windows" and not eeg["computed_before"]
    assert eeg["inputs"]["eeg"] == {"shape": [None, 30, 500], "dtype": "float32"}
    assert eeg["window"]["unit"] == "microvolt" and eeg["window"]["hz"] == 100 and len(eeg["window"]["channels"]) == 30
    assert audio["starts_at"] == "features" and "eav_ray.models.encoders.ast" in audio["computed_before"]
    assert all((exported / part["file"]).exists() for part in [*tree["encoders"].values(), tree["fusion"]])


@pytest.mark.slow
def test_a_mistake_of_whoever_calls_is_one_line(exported: Path) -> None:
    model = OnnxModel(exported, n_threads=1)
    eeg, only_eeg = np.zeros((2, 30, 500), np.float32), np.tile([False, True, False], (2, 1))
    assert model.run({"eeg": eeg}, only_eeg).logits_BK.shape == (2, 5)
    with pytest.raises(DataError, match="a window has none of the modalities"):
        model.run({"eeg": eeg}, only_eeg & [[True], [False]])
    with pytest.raises(
        DataError, match=r"eeg is missing; give it as onnx/graph.json says, float32 of shape \(2, 30, 500\)"
    ):
        model.run({}, only_eeg)
    with pytest.raises(DataError, match=r"eeg is float64 of shape \(2, 30, 500\); give float32"):
        model.run({"eeg": eeg.astype(np.float64)}, only_eeg)


def test_a_folder_without_onnx_says_so(tmp_path: Path) -> None:
    plain = export_checkpoint(save_checkpoint(Store(tmp_path / "results"), make_checkpoint()), str(tmp_path / "folder"))
    with pytest.raises(ConfigError, match="has no onnx/graph.json; export it again with `eav export NAME --onnx`"):
        OnnxModel(plain.path)


@pytest.mark.slow
def test_a_damaged_file_is_named(exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "folder"
    copy.mkdir()
    for path in exported.rglob("*.*"):
        (copy / path.relative_to(exported)).parent.mkdir(exist_ok=True)
        (copy / path.relative_to(exported)).write_bytes(path.read_bytes())
    (copy / "COMMIT").write_bytes((exported / "COMMIT").read_bytes())
    (copy / "onnx" / "eeg.onnx").write_bytes(b"no graph")
    with pytest.raises(DataError, match=r"onnx/eeg.onnx is damaged: its sha256 is not the one in COMMIT"):
        OnnxPredictor(copy)


@pytest.mark.slow
def test_a_model_that_normalises_within_people_is_run_by_who_measures_them(tmp_path: Path) -> None:
    changes = {
        "data.modalities": ["audio"],
        "model.audio": {"kind": "mfcc", "width": 8, "segments": 2, "subject_normalisation": "standardise"},
        "split.access": "unlabelled_block",
    }
    made = make_untrained_checkpoint(override(EXPERIMENT, changes))
    checkpoint = save_checkpoint(Store(tmp_path / "results"), made)
    folder = export_checkpoint(checkpoint, str(tmp_path / "folder"), onnx=True).path
    with pytest.raises(ConfigError, match="normalises audio within people, whom only eav_ray.Predictor measures"):
        OnnxPredictor(folder)
    part = OnnxModel(folder).graph["encoders"]["audio"]
    assert "mean and SD of the features over recordings of the same person" in part["computed_before"]
    assert {"audio.subject_mean", "audio.subject_sd"} < set(part["inputs"])

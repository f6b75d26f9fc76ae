"""A checkpoint notes the published weights that it started from, so that their licence is known where they are not."""

import json
import shutil
from pathlib import Path

from eav_ray.config import Experiment, override
from eav_ray.data.splits import Split
from eav_ray.models.encoders.base import DataShapes
from eav_ray.storage import Store
from eav_ray.storage.published_weights import describe_starting_weights, list_starting_weights
from eav_ray.training.checkpoint import open_finished_checkpoint
from eav_ray.training.checkpoint_files import STARTING_WEIGHTS
from eav_ray.training.checkpoint_writer import CheckpointWriter
from eav_ray.training.run_spec import Position, Run, plan_encoder_run, plan_fusion_run
from tests.helpers.classifiers import SMALL

SPLIT, SHAPES = Split("within", ("subject1/001",), (), ()), DataShapes(5, 2)
NOTED = {"name": "lab/model", "revision": "0" * 40, "licence": "cc-by-nc-4.0", "is_non_commercial": True}


def write_weights(folder: Path) -> Path:
    folder.mkdir(parents=True)
    notes = {key: value for key, value in NOTED.items() if key != "is_non_commercial"}
    (folder / "weights.json").write_text(json.dumps({"format": 1, "files": {}, "n_bytes": 0} | notes))
    return folder


def finish(run: Run, results: Store) -> dict[str, object]:
    """What a finished run notes."""
    writer = CheckpointWriter(run, results, ("a", "b"), SHAPES)
    prefix = writer.finish({}, Position(run.epochs, 0), {"train_loss": 1.0})
    writer.close()
    return open_finished_checkpoint(results.format_path(prefix)).metrics


def test_a_fusion_notes_what_its_encoders_started_from_though_that_is_gone(tmp_path: Path) -> None:
    weights, results = write_weights(tmp_path / "weights" / "model"), Store(tmp_path / "results")
    e = override(Experiment(), SMALL | {"model.audio.weights": str(weights), "data.modalities": ["audio", "eeg"]})
    encoder = plan_encoder_run(e, "audio", SPLIT, "data", ())
    fusion = plan_fusion_run(e, SPLIT, "data", ())
    assert fusion.encoder_keys["audio"] == encoder.key
    assert finish(encoder, results)[STARTING_WEIGHTS] == {"audio": NOTED}
    finish(plan_encoder_run(e, "eeg", SPLIT, "data", ()), results)
    shutil.rmtree(weights)
    assert finish(fusion, results)[STARTING_WEIGHTS] == {"audio": NOTED}


def test_a_training_from_random_values_notes_nothing(tmp_path: Path) -> None:
    e = override(Experiment(), SMALL)
    metrics = finish(plan_encoder_run(e, "eeg", SPLIT, "data", ()), Store(tmp_path))
    assert STARTING_WEIGHTS not in metrics and describe_starting_weights(e) == {}


def test_what_was_not_fetched_has_a_name_and_no_licence(tmp_path: Path) -> None:
    e = override(Experiment(), SMALL | {"model.audio.weights": str(tmp_path / "own")})
    assert list_starting_weights(describe_starting_weights(e)) == ["audio: own, licence not known, ask their authors"]

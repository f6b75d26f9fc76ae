"""The script for Slurm with real Ray on this machine; stand-ins for Slurm's own commands (tests/helpers/slurm.py)."""

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.helpers import slow_saves
from tests.helpers.clusters import PATIENCE_S, find_furthest
from tests.helpers.paths import REPOSITORY
from tests.helpers.reliability import IN_CHAOS
from tests.helpers.slurm import list_folders, open_job

pytestmark = pytest.mark.ray


@IN_CHAOS
def test_a_training_whose_time_is_nearly_over_saves_and_is_queued_again(
    preprocessed: list[str], place: Path, job_environment: dict[str, str], tmp_path: Path
) -> None:
    words = [*preprocessed, "data.modalities=[eeg]", "runtime.workers=1", "runtime.engine=torch"]
    words += ["train.encoders.eeg.epochs=4", "train.checkpoint_steps=1", f"plugins=[{slow_saves.__name__}]"]
    begun = tmp_path / "saves"
    venv = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = job_environment | {"PATH": venv, slow_saves.VARIABLE: f"1:{begun}", "PYTHONPATH": str(REPOSITORY)}
    with open_job(tmp_path, environment, "train", *words, "store.results=slurm", nodes=1, place=place) as job:
        slow_saves.wait_for_saves(begun, 2)
        job.send_signal(signal.SIGUSR1)
        _, reported = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 130, reported
    assert "stopped; rerun the same command to continue (0 of 1 training finished)" in reported
    assert find_furthest(place / "slurm") == slow_saves.read_begun(begun)[-1]
    assert (tmp_path / "log").read_text().startswith("scontrol requeue ") and not list_folders()

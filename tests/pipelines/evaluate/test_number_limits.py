"""What is for classes alone says so in one line, before anything is read or trained."""

from pathlib import Path

import pytest

from eav_ray.config import Experiment, override
from eav_ray.errors import ConfigError
from eav_ray.pipelines.evaluate.ablation import run_ablation
from eav_ray.pipelines.evaluate.adapt import plan_adaptation
from eav_ray.pipelines.evaluate.evaluate import evaluate_cross_validation
from eav_ray.pipelines.evaluate.robustness import RobustnessOptions, run_robustness
from eav_ray.storage import Store
from tests.helpers.checkpoints import make_checkpoint, save_checkpoint
from tests.helpers.datasets import make_dataset

REFUSAL = r"is for classes, and this experiment predicts numbers \(data.targets.columns is valence, arousal\); "


@pytest.fixture
def experiment() -> Experiment:
    return override(
        Experiment(),
        {
            "data.dataset": "recordings_table",
            "data.root": "/nowhere/recordings.csv",
            "data.targets.columns": ["valence", "arousal"],
        },
    )


def test_an_ablation_is_refused(experiment: Experiment) -> None:
    with pytest.raises(ConfigError, match=f"^`eav ablate` {REFUSAL}compare variants by `eav protocol`"):
        run_ablation(experiment)


def test_a_temperature_is_refused(experiment: Experiment) -> None:
    with pytest.raises(ConfigError, match=f"^--temperature {REFUSAL}leave it out"):
        evaluate_cross_validation(experiment, searched=False, out="", fit_temperature=True)


def test_an_adaptation_is_refused(experiment: Experiment, tmp_path: Path) -> None:
    trained = save_checkpoint(Store(tmp_path), make_checkpoint(experiment))
    with pytest.raises(ConfigError, match=f"^`eav adapt` {REFUSAL}train with the person's recordings"):
        plan_adaptation(experiment, make_dataset(experiment), trained.path, "p0", 2)


def test_a_robustness_test_is_refused(experiment: Experiment, tmp_path: Path) -> None:
    trained = save_checkpoint(Store(tmp_path), make_checkpoint(experiment))
    with pytest.raises(ConfigError, match=f"^`eav robustness` {REFUSAL}give a checkpoint"):
        run_robustness(trained.path, {}, RobustnessOptions(), str(tmp_path))

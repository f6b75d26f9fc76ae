"""What is for classes alone says so in one line, before anything is read or trained."""

from dataclasses import replace
from pathlib import Path

import pytest

from eav_ray.config import Experiment, override
from eav_ray.errors import ConfigError, DataError
from eav_ray.evaluation.compatibility import check_kind_of_outputs
from eav_ray.pipelines.evaluate.ablation import run_ablation
from eav_ray.pipelines.evaluate.adapt import plan_adaptation
from eav_ray.pipelines.evaluate.evaluate import evaluate_cross_validation
from eav_ray.pipelines.evaluate.robustness import RobustnessOptions, run_robustness
from eav_ray.storage import Store
from eav_ray.training.target_scale import TargetScale
from tests.helpers.checkpoints import change_state, make_checkpoint, save_checkpoint
from tests.helpers.datasets import make_dataset

REFUSAL = r"is for classes, and {} predicts numbers \(data.targets.columns is valence, arousal\); "
OF_EXPERIMENT, OF_CHECKPOINT = REFUSAL.format("this experiment"), REFUSAL.format("/.*/runs/run/.*")


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
    with pytest.raises(ConfigError, match=f"^`eav ablate` {OF_EXPERIMENT}compare variants by `eav protocol`"):
        run_ablation(experiment)


def test_a_temperature_is_refused(experiment: Experiment) -> None:
    with pytest.raises(ConfigError, match=f"^--temperature {OF_EXPERIMENT}leave it out"):
        evaluate_cross_validation(experiment, searched=False, out="", fit_temperature=True)


def test_an_adaptation_is_refused(experiment: Experiment, tmp_path: Path) -> None:
    trained = save_checkpoint(Store(tmp_path), make_checkpoint(experiment))
    with pytest.raises(ConfigError, match=f"^`eav adapt` {OF_CHECKPOINT}train with the person's recordings"):
        plan_adaptation(experiment, make_dataset(experiment), trained.path, "p0", 2)


def test_a_robustness_test_is_refused(experiment: Experiment, tmp_path: Path) -> None:
    trained = save_checkpoint(Store(tmp_path), make_checkpoint(experiment))
    with pytest.raises(ConfigError, match=f"^`eav robustness` {OF_CHECKPOINT}give a checkpoint"):
        run_robustness(trained.path, {}, RobustnessOptions(), str(tmp_path))


def test_a_checkpoint_and_an_experiment_of_other_kinds_are_each_named(experiment: Experiment, tmp_path: Path) -> None:
    scale = TargetScale(("valence", "arousal"), (0.0, 0.0), (1.0, 1.0))
    numbers = save_checkpoint(Store(tmp_path), change_state(make_checkpoint(experiment), scale=scale))
    classes = save_checkpoint(Store(tmp_path), make_checkpoint(Experiment(), key="other"))
    of_classes = make_dataset(Experiment()).index
    for checkpoint, index, expected in (
        (numbers, of_classes, r"predicts numbers \(valence, arousal\), but this experiment .* of classes \("),
        (
            classes,
            replace(of_classes, targets=("valence",)),
            r"predicts classes \(a, b\), but .* of numbers \(valence\)",
        ),
    ):
        with pytest.raises(DataError, match=f"^{checkpoint.path} {expected}.*; give the same data.targets$"):
            check_kind_of_outputs(checkpoint, index)
    check_kind_of_outputs(classes, of_classes)

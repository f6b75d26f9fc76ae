"""A checkpoint is only evaluated on windows that were made as its training windows were."""

from typing import Any

import pytest

from eav_ray.config import Experiment, override
from eav_ray.data.shard import Index
from eav_ray.data.split import Split
from eav_ray.errors import ConfigError, DataError
from eav_ray.models.build import Shapes
from eav_ray.runtime.predict import check_windows
from eav_ray.training.checkpoint import Checkpoint
from eav_ray.training.loop import Position

INDEX = Index("k", ("a", "b"), ("audio", "eeg"), 30, (), {})


def trained(**changes: Any) -> Checkpoint:
    e = override(Experiment(), {"data.modalities": ["audio", "eeg"]} | changes)
    split = Split("loso", ("p/1",), (), ("q/1",))
    return Checkpoint(e, split, ("a", "b"), Shapes(30, 2), {}, {}, Position(1, 0), True, {}, {})


def test_another_profile_is_refused_with_the_key_that_differs() -> None:
    with pytest.raises(ConfigError, match=r"profile\.eeg\.low_hz=1\.0 there, 0\.5 here"):
        check_windows(Experiment(), trained(**{"profile.eeg.low_hz": 1.0}), INDEX, "best")


@pytest.mark.parametrize(
    "change", [{}, {"profile.video.quality": 80}, {"profile.on_bad": "drop"}, {"profile.chunk": 3}, {"optim.lr": 1.0}]
)
def test_what_does_not_change_its_windows_may_differ(change: dict[str, Any]) -> None:
    check_windows(override(Experiment(), change), trained(), INDEX, "best")


def test_other_classes_are_refused() -> None:
    with pytest.raises(DataError, match="trained on the classes a, b, but these shards hold c, d"):
        check_windows(Experiment(), trained(), Index("k", ("c", "d"), ("eeg",), 30, (), {}), "best")

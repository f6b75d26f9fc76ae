"""Changes on a command line that nothing looks at are named."""

import pytest

from eav_ray.cli.arguments import describe_unused_changes
from eav_ray.config import Experiment, override


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"optim.epochs": 3}, "optim.epochs has no effect: with eeg alone nothing is fused; its training is train.enc"),
        ({"optim.lr": 0.1, "fusion.heads": 2}, "optim.lr and fusion.heads have no effect: with eeg alone"),
        ({"train.encoders.eeg.epochs": 3}, ""),
    ],
)
def test_settings_of_the_fusion_have_no_effect_on_one_modality(changes: dict[str, object], expected: str) -> None:
    line = describe_unused_changes(override(Experiment(), {"data.modalities": ["eeg"], **changes}), changes)
    assert line.startswith(expected) and bool(line) == bool(expected)
    assert describe_unused_changes(override(Experiment(), changes), changes) == ""

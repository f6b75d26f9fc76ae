"""What PyTorch and DeepSpeed do not promise to keep, and this program uses, is in the versions that are installed."""

import importlib.metadata

import pytest

from eav_ray.training import torch_workarounds
from eav_ray.training.engines import deepspeed_workarounds
from tests.helpers.private_names import list_missing_names


@pytest.mark.parametrize(("package", "module"), [("torch", torch_workarounds), ("deepspeed", deepspeed_workarounds)])
def test_every_private_name_is_there(package: str, module: object) -> None:
    """What is gone: see when it may go (PRIVATE_NAMES), and either take its use out or give it the new name."""
    names: dict[str, tuple[str, str]] = getattr(module, "PRIVATE_NAMES")  # noqa: B009
    assert list_missing_names(names) == []
    assert {seen for seen, _ in names.values()} == {importlib.metadata.version(package).split("+")[0]}

"""One process group of one for all engines of a test session: DeepSpeed keeps the groups that it once saw."""

from collections.abc import Iterator

import pytest
import torch.distributed as dist


@pytest.fixture(scope="session", autouse=True)
def group() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()

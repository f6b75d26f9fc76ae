"""One process group of one for all engines of a test session, as DeepSpeed keeps those it saw; and how ranks end."""

import os
import sys
from collections.abc import Iterator

import pytest
import torch.distributed as dist


@pytest.fixture(scope="session", autouse=True)
def group() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def leave() -> None:
    """The end of a rank that a test started.

    A thread of torch that wants the interpreter while it is taken down ends the process with SIGABRT, now and then.
    """
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)

"""Where the tests of this folder run: on CUDA, or on what EAV_RAY_GPU_TESTS names.

With `cpu` they show that they themselves run.
"""

import os
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

BACKENDS = {"cuda": "nccl", "cpu": "gloo"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/gpu" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device() -> torch.device:
    found = torch.device(os.environ.get("EAV_RAY_GPU_TESTS", "cuda"))
    if found.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU: torch.cuda.is_available() is false")
    return found


@pytest.fixture(scope="session", autouse=True)
def group(device: torch.device) -> Iterator[None]:
    """One process group of one rank for all engines: DeepSpeed keeps the groups that it once saw."""
    backend = BACKENDS[device.type]
    if dist.is_initialized() and dist.get_backend() != backend:
        pytest.skip(f"other tests of this session made a {dist.get_backend()} group; run `pytest tests/gpu` alone")
    if not dist.is_initialized():
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Single precision is single precision: no TF32, in products (PyTorch's default) and in convolutions."""
    assert torch.get_float32_matmul_precision() == "highest"
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield

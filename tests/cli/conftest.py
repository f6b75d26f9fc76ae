"""Commands are run as if nobody had started a Ray."""

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_ray_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Put back what a command makes of the signals of its process."""
    numbers = (signal.SIGINT, signal.SIGHUP)
    earlier = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, earlier, strict=True):
        signal.signal(number, handler)

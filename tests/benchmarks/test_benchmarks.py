"""Benchmarks can be started, and what they say of options is paired over people."""

import importlib
import pkgutil

import pandas as pd
import pytest

import benchmarks
from benchmarks.gains import format_gains

OPTIONAL_PACKAGES = {"cv2"}  # of the extra `bench`, which tests do not install


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(benchmarks.__path__)])
def test_a_benchmark_can_be_imported(name: str) -> None:
    try:
        module = importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        assert error.name in OPTIONAL_PACKAGES
        pytest.skip(f"benchmarks.{name} needs {error.name}, of the extra bench")
    assert module.__doc__


def test_gains_are_paired_and_adjusted_for_their_number() -> None:
    """Seven people: one option helps each by about ten points, the other nobody."""
    names = [f"p{k}" for k in range(7)]
    base = pd.Series([50.0, 60, 70, 40, 55, 65, 45], names)
    helps, same = base + [9.0, 10, 11, 10, 9, 11, 10], base + 0.0
    _, _, *lines = format_gains("turned", {"none": base, "helps": helps, "same": same}, "none")
    assert lines[0] == "| none | 55.0 | 10.8 | - | - | - |"
    assert "+10.0 (+9.2 to +10.8) | 7, 0 | 0.031 |" in lines[1]  # 2 of 2 ** 7 orders of signs, doubled for two options
    assert "0, 0 | 1 |" in lines[2]

"""Where the real recordings are, and nothing of Ray's that a test did not ask for."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.register_profile("chaos", settings.get_profile("default"), max_examples=5_000, derandomize=False)
settings.load_profile(os.environ.get("EAV_RAY_HYPOTHESIS", "default"))

CHAOS = os.environ.get("EAV_RAY_HYPOTHESIS") == "chaos"  # full counts instead of a short case (`make chaos`)
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real recordings: EAV_RAY_REAL, else `shared/real` beside the repository."""
    folder = Path(os.environ.get("EAV_RAY_REAL", REPOSITORY.parent / "shared" / "real"))
    if not folder.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI needs the real recordings, but {folder} does not exist; set EAV_RAY_REAL")
        pytest.skip(f"no real recordings in {folder}; set EAV_RAY_REAL")
    return folder

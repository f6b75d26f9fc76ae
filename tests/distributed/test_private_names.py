"""What Ray does not promise to keep, and this program uses, is in one module and in the Ray that is installed."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from eav_ray.config.environment import environment_variables
from eav_ray.config.paths import SUBMITTED_JOB_VARIABLE
from eav_ray.distributed.rank_errors import NODE_DIED
from eav_ray.distributed.ray_workarounds import (
    CORE_FLAGS,
    CORE_TEXTS,
    LOCAL_RAY_VARIABLES,
    LOOPBACK_VARIABLES,
    PRIVATE_NAMES,
    ray_environment,
)
from tests.helpers.paths import REPOSITORY
from tests.helpers.private_names import list_missing_names

WORKAROUNDS = {"ray_workarounds.py", "deepspeed_workarounds.py", "torch_workarounds.py"}
PRIVATE = re.compile(r"\b_private\b|\b_internal\b|ray\.train\.v2|__compatible_ops__|TUNE_[A-Z]+_|\bRAY_[a-z]+_")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Serve's own declarations
def test_ray_has_every_private_name() -> None:
    """What is gone: see when it may go (PRIVATE_NAMES), and either take its use out or give it the new name."""
    assert list_missing_names(PRIVATE_NAMES) == []


def test_a_name_that_is_gone_is_seen() -> None:
    gone = ["ray.nothing:x", "ray.tune:Nothing", "ray.tune.constants:'TUNE_NOTHING'", "ray.data:Dataset.map.nothing"]
    assert list_missing_names(gone) == gone


def test_rays_core_has_every_flag() -> None:
    raylet = (Path(ray.__file__).parent / "core" / "src" / "ray" / "raylet" / "raylet").read_bytes()
    assert [flag for flag in CORE_FLAGS if flag.encode() not in raylet] == []
    assert {f"RAY_{flag}" for flag in CORE_FLAGS} < set(LOCAL_RAY_VARIABLES)


def test_rays_core_has_the_texts_that_are_looked_for() -> None:
    service = (Path(ray.__file__).parent / "core" / "src" / "ray" / "gcs" / "gcs_server").read_bytes()
    assert [text for text in CORE_TEXTS if text.encode() not in service] == []
    assert NODE_DIED in CORE_TEXTS


def test_the_names_were_seen_in_the_pinned_ray() -> None:
    version = importlib.metadata.version("ray")
    assert {seen.split(",")[0].split(";")[0] for seen, _ in PRIVATE_NAMES.values()} == {version}
    assert all(condition for _, condition in PRIVATE_NAMES.values())


def test_private_names_stand_in_the_workarounds_alone() -> None:
    found = {
        str(path.relative_to(REPOSITORY))
        for path in (REPOSITORY / "eav_ray").rglob("*.py")
        if path.name not in WORKAROUNDS and PRIVATE.search(path.read_text())
    }
    assert found == set()
    assert f"ray._private.runtime_env.constants:'{SUBMITTED_JOB_VARIABLE}'" in PRIVATE_NAMES


def test_the_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIVEN", "by the user")
    monkeypatch.delenv("NEW", raising=False)
    with environment_variables({"GIVEN": "1", "NEW": "1"}):
        assert (os.environ["GIVEN"], os.environ["NEW"]) == ("1", "1")
    with environment_variables({"GIVEN": "1", "NEW": "1"}, keep_existing=True):
        assert (os.environ["GIVEN"], os.environ["NEW"]) == ("by the user", "1")
    before = dict(os.environ)
    with pytest.raises(KeyError), ray_environment(is_local=True, dashboard=False):
        assert set(LOCAL_RAY_VARIABLES) < set(os.environ)
        raise KeyError
    assert dict(os.environ) == before


def test_a_ray_of_its_own_is_started_on_loopback_whatever_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    (variable,) = LOOPBACK_VARIABLES
    monkeypatch.setenv(variable, "1")
    before = ray.util.get_node_ip_address()
    with ray_environment(is_local=True, dashboard=False):
        assert (os.environ[variable], ray.util.get_node_ip_address()) == ("0", "127.0.0.1")
    with ray_environment(is_local=False, dashboard=False):
        assert (os.environ[variable], ray.util.get_node_ip_address()) == ("1", before)


def test_what_preprocesses_loads_no_torch() -> None:
    """Loading it takes seconds, in each worker of a preprocessing."""
    code = "import sys, eav_ray.pipelines.preprocess.preprocess as p; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)

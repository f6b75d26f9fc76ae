"""What an optional package does is refused in one line that names the extra, before anything starts."""

import sys
from pathlib import Path

import pytest

from eav_ray.cli.main import run_command
from eav_ray.config import Experiment, override
from eav_ray.config.extras import is_installed, require_extra
from eav_ray.errors import ConfigError
from eav_ray.tracking.tensorboard import open_tensorboard_tracker
from eav_ray.tuning.search_space import check_search_space


def test_a_missing_package_is_named_with_its_extra_and_the_way_out() -> None:
    assert is_installed("numpy") and not is_installed("no_such_module")
    require_extra("mlflow", "store.mlflow", {"numpy": "numpy"})
    expected = r"^a\.key needs no-such; type `pip install -c constraints\.txt -e '\.\[some\]'`, or set a\.key=none$"
    with pytest.raises(ConfigError, match=expected):
        require_extra("some", "a.key", {"no_such_module": "no-such", "numpy": "numpy"}, "set a.key=none")


def test_a_sampler_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(ConfigError, match=r"^search\.sampler=cmaes needs cmaes; .*\[cmaes\].*another search\.sampler$"):
        check_search_space(override(Experiment(), {"search.sampler": "cmaes", "search.ask_batch_size": 8}))
    check_search_space(override(Experiment(), {"search.sampler": "tpe"}))


@pytest.mark.parametrize("module", ["fastapi", "uvicorn", "python_multipart"])
def test_serving_without_its_packages_is_refused(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert run_command(["serve", "best"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: `eav serve` needs ") and "[serve]" in error and error.count("\n") == 1


def test_trainings_go_on_without_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert open_tensorboard_tracker(tmp_path) is None
    assert "[tensorboard]" in capsys.readouterr().err

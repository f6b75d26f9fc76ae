"""Paths are those of the folder in which a command was given, and absolute in a submitted job."""

import pytest

from eav_ray.config import Experiment, load_experiment, override
from eav_ray.config.paths import resolve_experiment_paths, retarget_experiment
from eav_ray.errors import ConfigError


def test_relative_folders_are_refused_in_a_submitted_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match=r"store\.\w+ is .*absolute path"):
        resolve_experiment_paths(Experiment())
    with pytest.raises(ConfigError, match=r"store\.shards is .*absolute path"):
        resolve_experiment_paths(Experiment(), used_stores=("shards",))
    with pytest.raises(ConfigError, match=r"data\.root is .*absolute path"):
        retarget_experiment(Experiment(), {"data.root": "new_people"})


def test_a_submitted_job_may_leave_alone_the_stores_that_it_does_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert resolve_experiment_paths(Experiment(), used_stores=()).store == Experiment().store
    assert retarget_experiment(Experiment(), {"data.root": "/data/new_people"}).data.root == "/data/new_people"


def test_home_is_meant_by_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    changes = {"data.root": "~/EAV", "store.shards": "~/shards", "store.results": "s3://lab/~", "store.cache": "~"}
    found = resolve_experiment_paths(override(Experiment(), changes))
    assert (found.data.root, found.store.shards) == ("/home/me/EAV", "/home/me/shards")
    assert (found.store.results, found.store.cache) == ("s3://lab/~", "/home/me")


@pytest.mark.parametrize("key", ["store.results", "store.mlflow", "search.storage", "data.root", "name"])
def test_a_secret_in_a_url_under_any_key_is_refused_and_not_repeated(key: str) -> None:
    for url in ("s3://KEY:PLANTED@lab/x", "https://host/x?token=PLANTED", "postgresql://me:PLANTED@nowhere/x"):
        with pytest.raises(ConfigError, match=f"{key}.* has a secret in") as caught:
            load_experiment("demo", {key: url})
        assert "PLANTED" not in str(caught.value) and "\n" not in str(caught.value)

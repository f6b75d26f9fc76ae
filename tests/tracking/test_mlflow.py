"""What MLflow is given is what the trainings told; MLflow cannot break or hold up a training."""

import os
import socket
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from eav_ray.config import Experiment, load_experiment, override
from eav_ray.config.paths import resolve_experiment_paths
from eav_ray.data.splits import Split
from eav_ray.errors import ConfigError
from eav_ray.pipelines.preparation import prepare_experiment
from eav_ray.tracking import mlflow
from eav_ray.tracking.mlflow import RUN_KEY_TAG, MLflowTracker, flatten_config, make_mlflow_client, mlflow_environment
from eav_ray.training.run_spec import Progress, Run
from tests.helpers.paths import DEMO
from tests.helpers.reliability import CHAOS

DEMO = str(DEMO)
# MLflow's tables use a loader of SQLAlchemy that is to go.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests, each in an MLflow experiment of its own: making the tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow, "CLOSE_TIMEOUT_S", 60.0)  # tables are made within it on a busy machine


def experiment(uri: str, name: str, **changes: Any) -> Experiment:
    return load_experiment(DEMO, {"store.mlflow": uri, "name": name} | changes)


def training(e: Experiment) -> Run:
    return Run("joint", e, Split("within", ("subject1/000",), (), ()), "data")


def reported(run: Run, *epochs: float, of: int = 3) -> list[Progress]:
    return [
        Progress(run.key, run.title, x, of, int(10 * x), {"train_loss": 1 / x, "data_wait_fraction": 0.5})
        for x in epochs
    ]


def tell(e: Experiment, run: Run, *epochs: float) -> None:
    with closing(MLflowTracker(e, [run])) as board:
        for progress in reported(run, *epochs):
            board.log(progress)


def runs_of(uri: str, name: str) -> list[Any]:
    client = make_mlflow_client(uri)
    found = client.get_experiment_by_name(name)
    return client.search_runs([found.experiment_id], order_by=["attributes.start_time"]) if found else []


def curve(uri: str, run_id: str, metric: str = "train_loss") -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in make_mlflow_client(uri).get_metric_history(run_id, metric)]


def test_a_training_is_a_run_with_its_experiment_and_its_curves(uri: str) -> None:
    e = experiment(uri, "curves", **{"optim.lr": 0.002})
    run = training(e)
    tell(e, run, 0.5, 1, 3)
    (found,) = runs_of(uri, "curves")
    assert (found.info.run_name, found.data.tags[RUN_KEY_TAG], found.info.status) == ("joint", run.key, "FINISHED")
    assert found.data.params["optim.lr"] == "0.002" and found.data.params["data.root"] == "data/synthetic"
    assert found.data.params["model.eeg.kind"] == "eegformer" and len(found.data.params) > mlflow.MAX_PARAMS_PER_REQUEST
    assert curve(uri, found.info.run_id) == [(5, 2.0), (10, 1.0), (30, pytest.approx(1 / 3))]
    assert {v for _, v in curve(uri, found.info.run_id, "data_wait_fraction")} == {0.5}


def test_a_training_that_is_resumed_continues_its_run(uri: str) -> None:
    e = experiment(uri, "resumed")
    run = training(e)
    other = training(override(e, {"seed": 1}))
    with closing(MLflowTracker(e, [run, other])) as board:
        for progress in [*reported(run, 0.5, 1), *reported(other, 1, 3)]:
            board.log(progress)
    first, second = sorted(runs_of(uri, "resumed"), key=lambda r: r.data.tags[RUN_KEY_TAG] != run.key)
    assert (first.info.status, second.info.status) == ("FAILED", "FINISHED")
    again = override(e, {"runtime.workers": 1})  # which the key does not hold
    assert training(again).key == run.key
    tell(again, training(again), 2, 3)
    first, second = sorted(runs_of(uri, "resumed"), key=lambda r: r.data.tags[RUN_KEY_TAG] != run.key)
    assert first.info.status == "FINISHED"
    assert [step for step, _ in curve(uri, first.info.run_id)] == [5, 10, 20, 30]
    assert [step for step, _ in curve(uri, second.info.run_id)] == [10, 30]
    # Its results are gone, and it is trained anew.
    tell(again, training(again), 1)
    assert [r.info.status for r in runs_of(uri, "resumed") if r.data.tags[RUN_KEY_TAG] == run.key].count(
        "FINISHED"
    ) == 1
    assert len(runs_of(uri, "resumed")) == 3


def test_what_a_server_did_not_take_is_told_when_it_is_back(
    uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mlflow, "RETRY_INTERVAL_S", 0.0)
    kind = type(make_mlflow_client(uri))
    log_batch, failed = kind.log_batch, threading.Event()

    def log_once_without_an_answer(client: Any, *given: Any, **named: Any) -> None:
        log_batch(client, *given, **named)
        if "metrics" in named and not failed.is_set():
            failed.set()
            raise OSError("away\nfor a while")

    monkeypatch.setattr(kind, "log_batch", log_once_without_an_answer)
    e = experiment(uri, "away")
    with closing(MLflowTracker(e, [training(e)])) as board:
        for progress in reported(training(e), 0.5, 1, 3):
            board.log(progress)
            assert failed.wait(60)
    (found,) = runs_of(uri, "away")
    assert [step for step, _ in curve(uri, found.info.run_id)] == [5, 10, 30] and found.info.status == "FINISHED"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("go on without it: OSError: away for a while")


def test_many_trainings_keep_no_connection_and_no_thread(uri: str) -> None:
    e = experiment(uri, "many")
    runs = [training(override(e, {"seed": seed})) for seed in range(300 if CHAOS else 15)]
    counts: list[tuple[int, int]] = []
    with closing(MLflowTracker(e, runs)) as board:
        for run in runs:
            for progress in reported(run, 1, 3):
                board.log(progress)
        deadline = time.monotonic() + 300
        while sum(run.info.status == "FINISHED" for run in runs_of(uri, "many")) < len(runs):  # before the job ends
            counts.append((len(os.listdir("/proc/self/fd")), threading.active_count()))
            assert time.monotonic() < deadline
            time.sleep(0.5)
    first = counts[0] if counts else (0, 0)
    assert all(files <= first[0] + 10 and threads <= first[1] + 5 for files, threads in counts)


def test_an_unreachable_server_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    e = experiment(uri, "unreachable")
    board = MLflowTracker(e, [training(e)])
    for progress in reported(training(e), 0.5, 1, 2):
        board.log(progress)
        time.sleep(0.05)
    board.close()
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1
    assert err.startswith(f"MLflow at {uri} does not take the curves; trainings go on without it: MlflowException: ")


def test_a_server_that_never_answers_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mlflow, "CLOSE_TIMEOUT_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        e = experiment(f"http://127.0.0.1:{silent.getsockname()[1]}", "silent")
        began = time.monotonic()
        board = MLflowTracker(e, [training(e)])
        for progress in reported(training(e), 1, 2):
            board.log(progress)
        board.close()
        assert time.monotonic() - began < 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("no answer")


def test_nothing_is_asked_where_nothing_was_told(capsys: pytest.CaptureFixture[str]) -> None:
    e = experiment("http://127.0.0.1:1", "idle")
    MLflowTracker(e, []).close()
    assert capsys.readouterr() == ("", "")


def test_without_the_package_a_job_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    words = {"store.mlflow": "http://127.0.0.1:5000", "runtime.workers": 1}
    with pytest.raises(ConfigError, match=r"^store\.mlflow needs mlflow-skinny; type .*\[mlflow\].*$"):
        prepare_experiment(load_experiment(DEMO, words))
    prepare_experiment(load_experiment(DEMO, {"runtime.workers": 1}))


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("results/mlflow", "mlflow is 'results/mlflow'; give a tracking URI"),
        ("http://me:PLANTED@host:5000", "has a secret in the part before the @"),
    ],
)
def test_what_is_no_uri_or_holds_a_password_is_refused(uri: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_experiment(DEMO, {"store.mlflow": uri})
    assert says in str(error.value) and len(str(error.value).splitlines()) == 1 and "PLANTED" not in str(error.value)


def test_where_curves_go_is_no_part_of_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    e = experiment("sqlite:///results/mlflow.db", "key")
    assert training(e).key == training(override(e, {"store.mlflow": ""})).key
    monkeypatch.chdir(tmp_path)
    assert resolve_experiment_paths(e).store.mlflow == f"sqlite:///{tmp_path}/results/mlflow.db"


def test_telemetry_is_off(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    make_mlflow_client(uri)
    from mlflow.telemetry import utils

    monkeypatch.setattr(utils, "_IS_IN_CI_ENV_OR_TESTING", False)  # where it is off anyway
    with mlflow_environment():
        assert utils.is_telemetry_disabled()
    assert not utils.is_telemetry_disabled()


def test_flat_values_are_as_typed() -> None:
    tree = {"a": {"b": 1e-4, "c": ["x", "y"], "d": {}}, "e": "text", "f": True}
    assert flatten_config(tree) == {"a.b": "0.0001", "a.c": '["x", "y"]', "a.d": "{}", "e": "text", "f": "true"}

"""A checkpoint is served by Ray Serve as a user would do it: with a token, in pieces, until it is told to end."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.helpers.clusters import end_process, find_free_ports
from tests.helpers.infra import SERVICE
from tests.helpers.paths import REPOSITORY
from tests.helpers.reliability import CHAOS, IN_CHAOS
from tests.helpers.serving import Sent, write_checkpoint

pytestmark = pytest.mark.ray
TOKEN = "a-token-of-some-length"
N_SLOW = 400 if CHAOS else 20
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    (port,) = find_free_ports(1)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"OMP_NUM_THREADS": "1", "EAV_RAY_SERVE_TOKEN": TOKEN}
    command = [sys.executable, str(REPOSITORY / "jobs" / "serve.py"), write_checkpoint(tmp_path), "--port", str(port)]
    command += ["--replicas", "2", "runtime.cpus_per_worker=0.5"]
    process = subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    if "serving" not in (line := process.stdout.readline()):
        raise AssertionError((line, process.communicate()))
    try:
        yield process, f"127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def ask(url: str, tree: Any = None, headers: dict[str, str] = HEADERS) -> tuple[int, Any]:
    data = None if tree is None else json.dumps(tree).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://{url}", data, headers), timeout=60) as done:
            return done.status, json.load(done)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def send_and_hear(stream: Any, sent: Sent, first: float, last: float) -> list[Any]:
    """Send what lies between two times; returns what is reported until there is an answer at the second."""
    for time_s, data in sent.messages():
        if first < time_s <= last:
            stream.send(data)
    reported: list[Any] = []
    while not reported or "waiting" in reported[-1] or reported[-1]["time"] < last:
        reported.append(json.loads(stream.recv(timeout=30)))
    return reported


def test_it_is_watched_asked_streamed_to_and_ended(server: tuple["subprocess.Popen[str]", str]) -> None:
    process, url = server
    whole = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    assert {ask(f"{url}/{path}", headers={})[0] for path in ("health", "-/routes", "nope")} == {401}
    with urllib.request.urlopen(f"http://{url}/-/healthz", timeout=60) as alive:
        assert alive.read() == b"success"
    host, port = url.split(":")
    slow = [socket.create_connection((host, int(port))) for _ in range(N_SLOW)]
    for s in slow:
        s.sendall(b"GET /health HTTP/1.1\r\nX: ")
    status, health = ask(f"{url}/health")
    assert status == 200 and health["ok"] and health["modalities"] == ["audio", "eeg", "video"]

    sent = Sent(7)
    status, tree = ask(f"{url}/predict", sent.tree("eeg", "video"))
    assert status == 200 and tree["used"] == ["eeg", "video"] and tree["not_used"] == {"audio": "not sent"}
    assert tree["weights"]["audio"] == 0 and sum(tree["probabilities"].values()) == pytest.approx(1)
    assert ask(f"{url}/predict", {"audio": "***"})[0] == 422

    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://{url}/stream")
    assert refused.value.response.status_code in (401, 403)
    reported: list[Any] = []
    with connect(f"ws://{url}/stream", additional_headers=HEADERS) as stream:
        for first, last in ((0, 105), (105, 106)):
            reported += send_and_hear(stream, sent, first, last)
    answers = [t for t in reported if t["time"] >= 105 and "waiting" not in t]
    assert [t["start"] for t in answers] == [100.0, 101.0]
    assert [t["used"] for t in answers] == [["audio", "eeg", "video"]] * 2

    one, other = [p for p in whole if "ServeReplica" in p.name()]
    with connect(f"ws://{url}/stream", additional_headers=HEADERS) as stream:
        send_and_hear(stream, sent, 0, 103)
        one.kill()
        statuses = [ask(f"{url}/predict", sent.tree("audio"))[0] for _ in range(8)]
        assert set(statuses) <= {200, 503} and statuses[-1] == 200, statuses
        with suppress(ConnectionClosed):  # where it was a stream of that replica
            send_and_hear(stream, sent, 103, 105)
    with connect(f"ws://{url}/stream", additional_headers=HEADERS) as stream:
        assert send_and_hear(stream, sent, 0, 105)[-1]["used"] == ["audio", "eeg", "video"]
    assert other.is_running()
    for s in slow:
        s.settimeout(30)
        assert s.recv(1) == b""
        s.close()

    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped" in out and "Traceback" not in err, err
    for _ in range(100):
        left = [p for p in whole if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not left:
            return
        time.sleep(0.1)
    raise AssertionError(left)


@IN_CHAOS
def test_what_kubernetes_serves_answers(cluster: dict[str, str], tmp_path: Path) -> None:
    """`serve run` reads a configuration as the operator hands it to Ray Serve."""
    (port,) = find_free_ports(1)
    config = yaml.safe_load(SERVICE["serveConfigV2"])
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    (application,) = config["applications"]
    (tmp_path / "token").write_text(TOKEN)
    application["args"] |= {"checkpoint": write_checkpoint(tmp_path), "token_file": str(tmp_path / "token")}
    application["args"]["runtime.cpus_per_worker"] = 1
    application["deployments"][0]["num_replicas"] = 1
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    command = [str(Path(sys.executable).with_name("serve")), "run", "--address", cluster["RAY_ADDRESS"]]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, str(tmp_path / "serve.yaml")], env=cluster, cwd=REPOSITORY, stdout=log, stderr=log
        )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError, ValueError):
                status, health = ask(f"127.0.0.1:{port}/health")
                if status == 200:
                    break
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        else:
            raise AssertionError((tmp_path / "log").read_text())
        assert health["ok"]
        assert ask(f"127.0.0.1:{port}/health", headers={})[0] == 401
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    finally:
        end_process(process)

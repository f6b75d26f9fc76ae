"""What stands before Ray Serve's proxy: connections that are slow, silent, too many or without a token."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from eav_ray.pipelines.inference import proxy
from eav_ray.pipelines.inference.auth import TOKEN_VARIABLE, hash_token
from eav_ray.pipelines.inference.http_app import Limits, make_app
from eav_ray.pipelines.inference.proxy import LimitedProtocol, list_proxy_variables
from eav_ray.pipelines.inference.serve import check_proxy
from tests.helpers.memory import peak_memory
from tests.helpers.reliability import CHAOS
from tests.helpers.serving import Sent, encode_audio, make_predictor

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the websockets that uvicorn takes
TOKEN = "a-token-of-some-length"
BEARER = f"Authorization: Bearer {TOKEN}\r\n".encode()
N_SLOW = 400 if CHAOS else 60
LIMITS = Limits(max_body_bytes=2_000_000, body_idle_s=0.5, idle_timeout_s=3.0)


class FakeServe:
    """What the proxy of Ray Serve does: it takes a whole body at once, and knows two paths of its own."""

    def __init__(self) -> None:
        self._app = make_app(make_predictor(), "tiny", hash_token(TOKEN), LIMITS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["path"]:
            case "/-/healthz":
                await PlainTextResponse("success")(scope, receive, send)
            case "/-/routes":
                await PlainTextResponse('{"/": "the-name"}')(scope, receive, send)
            case "/swallow":
                kept = []
                while (message := await receive())["type"] == "http.request" and message["more_body"]:
                    kept.append(message["body"])
                await PlainTextResponse(message["type"])(scope, receive, send)
            case "/elsewhere":
                text = "Path '/elsewhere' not found. Ping http://.../-/routes for available routes."
                await PlainTextResponse(text, 404)(scope, receive, send)
            case "/dead":
                await PlainTextResponse("Traceback: the replica /home/me died", 500)(scope, receive, send)
            case _:
                await self._app(scope, receive, send)


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """A server as Ray Serve starts it, with what `make_middlewares` returns there; its port."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in list_proxy_variables(TOKEN).items():
            patch.setenv(name, value)
        patch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", uvicorn.config.HTTP_PROTOCOLS["auto"])
        patch.setattr(LimitedProtocol, "head_timeout_s", LimitedProtocol.head_timeout_s if CHAOS else 1.0)
        (middleware,) = proxy.make_middlewares()
        app = middleware.cls(FakeServe(), *middleware.args, **middleware.kwargs)
        config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_keep_alive=60)
        running = uvicorn.Server(config)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=asyncio.run, args=(running.serve([listener]),))
            thread.start()
            while not running.started:
                time.sleep(0.01)
            yield listener.getsockname()[1]
            running.should_exit = True
            thread.join()


def ask(port: int, head: bytes, body: bytes = b"") -> tuple[int, bytes]:
    """The status and the body of an answer, after which the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as s:
        s.sendall(head + b"Host: x\r\nConnection: close\r\n\r\n" + body)
        answer = b"".join(iter(lambda: s.recv(65536), b""))
    return int(answer.split(b" ")[1]), answer.partition(b"\r\n\r\n")[2]


def wait_until_closed(sockets: list[socket.socket], drip: bytes) -> float:
    """Send a piece again and again, until the server has closed all; returns the seconds that it took."""
    began, left = time.monotonic(), list(sockets)
    while left and time.monotonic() - began < 60:
        time.sleep(0.1)
        for s in list(left):
            try:
                s.sendall(drip)
                s.recv(65536, socket.MSG_DONTWAIT) or left.remove(s)
            except BlockingIOError:
                continue
            except OSError:
                left.remove(s)
    assert not left
    return time.monotonic() - began


def test_connections_that_never_finish_their_headers_are_closed_while_others_are_answered(server: int) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", server))) for _ in range(N_SLOW)]
        for s in slow[N_SLOW // 4 :]:  # the others say nothing but the pieces that are to come
            s.sendall(b"GET /health HTTP/1.1\r\n" + BEARER)
        assert ask(server, b"GET /health HTTP/1.1\r\n" + BEARER)[0] == 200
        assert wait_until_closed(slow, b"X: y\r\n") < 10


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /-/healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + BEARER + b"\r\nGET /health HTTP/1.1\r\nHost: x\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nab",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n" + BEARER + b"\r\nab",
    ],
    ids=["silent", "kept alive", "a second request", "a body without a token", "a body that ends in the middle"],
)
def test_a_connection_that_falls_silent_is_closed(server: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server)) as s:
        s.sendall(sent)
        assert wait_until_closed([s], b"") < 20


def test_headers_without_end_are_refused_at_once(server: int) -> None:
    with socket.create_connection(("127.0.0.1", server)) as s:
        s.sendall(b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 20_000)
        assert wait_until_closed([s], b"") < 10


def test_without_the_token_only_the_liveness_route_answers_and_names_nothing(server: int) -> None:
    assert ask(server, b"GET /-/healthz HTTP/1.1\r\n") == (200, b"success")
    for path in (b"/-/routes", b"/-/healthz/", b"/", b"/health", b"/nope", b"/predict", b"/stream", b"/dead"):
        for method in (b"GET", b"POST", b"OPTIONS"):
            for header in (b"", b"Authorization: Bearer nope\r\n"):
                status, body = ask(server, method + b" " + path + b" HTTP/1.1\r\n" + header)
                assert status == 401 and list(json.loads(body)) == ["error"]
    for path in ("stream", "-/healthz"):
        with pytest.raises(InvalidStatus) as refused:
            connect(f"ws://127.0.0.1:{server}/{path}")
        assert refused.value.response.status_code == 401
    assert check_proxy("127.0.0.1", server, TOKEN) == ""
    assert check_proxy("127.0.0.1", server, "another-token-of-some-length") == "wants another token"
    assert check_proxy("127.0.0.1", server, "") == "wants another token"


def test_a_proxy_that_another_job_started_without_a_guard_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(FakeServe(), lifespan="off", log_config=None)
        running = uvicorn.Server(config)
        thread = threading.Thread(target=asyncio.run, args=(running.serve([listener]),))
        thread.start()
        try:
            assert check_proxy("127.0.0.1", listener.getsockname()[1], TOKEN) == "answers without a token"
            assert check_proxy("127.0.0.1", listener.getsockname()[1], "") == ""
        finally:
            running.should_exit = True
            thread.join()


def test_a_body_that_is_too_long_is_not_kept(server: int) -> None:
    piece = bytes(2**20)
    with peak_memory() as peak, socket.create_connection(("127.0.0.1", server), timeout=60) as s:
        s.sendall(b"POST /swallow HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n" + BEARER + b"\r\n")
        for _ in range(200):
            try:
                s.sendall(piece)
            except OSError:
                break
        else:
            assert b"http.disconnect" in s.recv(65536)
    assert peak.mib < 100


def test_a_replica_that_ends_is_told_in_a_line(server: int) -> None:
    status, body = ask(server, b"GET /dead HTTP/1.1\r\n" + BEARER)
    assert status == 503 and json.loads(body) == {"error": "the replica ended; try again"}


def test_a_path_without_a_model_is_told_in_a_line_and_the_model_in_its_own_words(server: int) -> None:
    status, body = ask(server, b"GET /elsewhere HTTP/1.1\r\n" + BEARER)
    assert status == 404 and json.loads(body)["error"].startswith("/elsewhere: nothing is served here: a model that is")
    status, body = ask(server, b"GET /nosuch HTTP/1.1\r\n" + BEARER)
    assert status == 404 and "there are GET /health" in json.loads(body)["error"]


def test_more_connections_than_there_is_room_for_are_closed_at_once(
    server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "MAX_CONNECTIONS", 5)
    with ExitStack() as stack:
        many = [stack.enter_context(socket.create_connection(("127.0.0.1", server))) for _ in range(9)]
        assert wait_until_closed(many[5:], b"") < 10


def test_a_stream_outlives_the_limits_of_requests_and_ends_when_it_is_silent(server: int) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    sent = Sent(4)
    with connect(f"ws://127.0.0.1:{server}/stream", additional_headers=headers) as stream:
        for k in range(4):
            stream.send(encode_audio(float(k), sent.audio_T[k * 16_000 : (k + 1) * 16_000]))
            time.sleep(0.6)
        found: list[dict[str, Any]] = []
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                found.append(json.loads(stream.recv(timeout=30)))
    assert closed.value.rcvd and closed.value.rcvd.code == 1008 and "nothing came" in closed.value.rcvd.reason
    assert max(tree["time"] for tree in found) >= 3


def test_the_proxy_is_given_the_hash_of_the_token_alone() -> None:
    assert TOKEN not in str(list_proxy_variables(TOKEN)) and TOKEN_VARIABLE not in list_proxy_variables(TOKEN)
    assert list_proxy_variables("")[proxy.DIGEST_VARIABLE] == ""


def test_a_proxy_that_nobody_of_ours_started_reads_the_token_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a RayService."""
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv(proxy.TOKEN_FILE_VARIABLE, str(tmp_path / "token"))
    (middleware,) = proxy.make_middlewares()
    assert middleware.kwargs["token_digest"] == hash_token(TOKEN)

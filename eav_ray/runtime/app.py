"""A predictor behind HTTP and WebSocket: an ASGI app that knows nothing of Ray. Whatever comes in, no answer is a 500.

GET /health      what is served
POST /predict    one recording, any of its modalities: JSON, or a form with the parts `eeg` (JSON), `audio`, `video`
WS /stream       pieces of any modality (`wire.chunk_of`); an answer every second on the last window
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from python_multipart.exceptions import FormParserError
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from eav_ray.data.live import HOP_S, LiveStream, StreamSnapshot, make_window
from eav_ray.data.upload import MAX_UPLOAD_S, make_windows, parse_upload
from eav_ray.data.wire import parse_json
from eav_ray.errors import DataError
from eav_ray.runtime.access import TokenAuthMiddleware, encode_json, make_json_response
from eav_ray.training.predictor import Predictor, build_prediction_trees
from eav_ray.training.probabilities import RecordingAverager

TICK_S = 0.1


@dataclass(frozen=True)
class Limits:
    body_bytes: int = 32 * 2**20
    body_s: float = 60.0  # to send it
    requests: int = 8  # at once; they are computed one after the other
    streams: int = 16
    idle_s: float = 60.0  # a stream without a message ends
    in_a_row: int = 100  # messages that cannot be used; then a stream ends


class Refused(Exception):
    """A request that gets no prediction: (status, tree of JSON)."""

    def __init__(self, status: int, error: str, **more: Any) -> None:
        super().__init__(error)
        self.status, self.tree = status, {"error": error, **more}


def make_app(predictor: Predictor, name: str, token_digest: str = "", limits: Limits = Limits()) -> ASGIApp:
    """
    Args:
        name: Of the checkpoint, for /health.
        token_digest: `digest_of` the token that every request must bring; empty for none.
    """
    service = Service(predictor, name, limits)
    routes = [
        Route("/health", service.health, methods=["GET"]),
        Route("/predict", service.predict, methods=["POST"]),
        WebSocketRoute("/stream", service.stream),
    ]
    handlers: Any = {Refused: _refused, HTTPException: _http_error}
    return TokenAuthMiddleware(Starlette(routes=routes, exception_handlers=handlers), token_digest)


class Service:
    def __init__(self, predictor: Predictor, name: str, limits: Limits) -> None:
        self._predictor, self._name, self._limits = predictor, name, limits
        self._began = time.monotonic()
        self._requests = self._streams = 0
        # One each: more at once would only share the cores, and hold more memory. A long recording holds up no stream.
        self._for_requests, self._for_streams = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._turn = asyncio.Lock()

    async def health(self, request: Request) -> Response:
        p = self._predictor
        return make_json_response(
            {
                "ok": True,
                "checkpoint": self._name,
                "classes": list(p.classes),
                "modalities": list(p.modalities),
                "window_s": p.preprocessing.window_s,
                "eeg_channels": list(p.eeg_channel_names) or p.eeg_channels,
                "uptime_s": round(time.monotonic() - self._began, 1),
                "streams": self._streams,
                "longest_s": MAX_UPLOAD_S,
            }
        )

    async def predict(self, request: Request) -> Response:
        if self._requests >= self._limits.requests:
            raise Refused(503, f"{self._requests} requests are being answered; try again")
        self._requests += 1
        try:
            body = await self._body(request)
            kind = request.headers.get("content-type", "")
            form = await _form(request, body) if kind.lower().startswith("multipart/") else None
            work = partial(self._answered, body if form is None else form)
            await self._turn.acquire()
        except BaseException:
            self._requests -= 1
            raise
        # A client that goes away meanwhile does not end the work: it counts, and holds up others, until it is done.
        answer = asyncio.get_running_loop().run_in_executor(self._for_requests, work)
        answer.add_done_callback(self._finish_request)
        return make_json_response(await asyncio.shield(answer))

    def _finish_request(self, answer: "asyncio.Future[dict[str, Any]]") -> None:
        self._turn.release()
        self._requests -= 1
        if not answer.cancelled():
            answer.exception()  # asked for, in case nobody waits for it any more

    async def _body(self, request: Request) -> bytes:
        most = self._limits.body_bytes
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.body_s):
                async for part in request.stream():
                    parts.append(part)
                    size += len(part)
                    if size > most:
                        raise Refused(413, f"the request is longer than {most} bytes; send a shorter recording")
        except TimeoutError:
            raise Refused(408, f"the request did not end within {self._limits.body_s:g} s") from None
        except ClientDisconnect:
            raise Refused(400, "the request broke off") from None
        return b"".join(parts)

    def _answered(self, request: bytes | dict[str, Any]) -> dict[str, Any]:
        p = self._predictor
        try:
            tree = request if isinstance(request, dict) else parse_json(request, "the request")
            if isinstance(tree.get("eeg"), bytes):
                tree["eeg"] = parse_json(tree["eeg"], "eeg")
            upload = parse_upload(tree)
        except DataError as error:
            raise Refused(400, str(error)) from None
        made, not_used = make_windows(upload, p.preprocessing, p.modalities, p.eeg_channels, p.eeg_channel_names)
        if not made.windows:
            reasons = "; ".join(f"{m}: {reason}" for m, reason in not_used.items())
            raise Refused(422, f"nothing in this request can be used ({reasons})", not_used=not_used)
        table = p.predict_windows(made.windows)
        whole = RecordingAverager()
        whole.add(table)
        (recording,) = build_prediction_trees(whole.compute_means(), p.classes)
        recording |= {"used": [m for m in p.modalities if m not in not_used], "not_used": not_used}
        windows = [
            {"start_s": row["window"] * p.preprocessing.window_s, "used": _used(row, p)} | answer
            for row, answer in zip(made.windows, build_prediction_trees(table, p.classes), strict=True)
        ]
        return recording | {"windows": windows}

    async def stream(self, socket: WebSocket) -> None:
        await socket.accept()
        if self._streams >= self._limits.streams:
            await socket.close(1013, f"{self._streams} streams are open; try again")
            return
        self._streams += 1
        try:
            await Streaming(socket, self._predictor, self._limits, self._for_streams).run()
        finally:
            self._streams -= 1


class Streaming:
    """One client's stream: one task takes messages, however many; the other answers when it is time."""

    def __init__(self, socket: WebSocket, predictor: Predictor, limits: Limits, pool: ThreadPoolExecutor) -> None:
        p = predictor
        self._socket, self._predictor, self._limits, self._pool = socket, predictor, limits, pool
        self._live = LiveStream(p.preprocessing, p.modalities, p.eeg_channels, p.eeg_channel_names)
        self._new = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._last_error, self._bad = "", 0

    async def run(self) -> None:
        hearing = asyncio.create_task(self._hear())
        try:
            with suppress(WebSocketDisconnect, RuntimeError):  # RuntimeError: it was closed meanwhile
                reason = await self._answer(hearing)
                if reason and self._socket.application_state is WebSocketState.CONNECTED:
                    await self._socket.close(1008, reason)
        finally:
            hearing.cancel()
            with suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                await hearing

    async def _hear(self) -> None:
        while (message := await self._socket.receive())["type"] == "websocket.receive":
            self._heard = self._loop.time()
            self._take(message)
            self._new.set()
            await asyncio.sleep(0)  # a flood of messages must not keep the answers from being made

    def _take(self, message: Message) -> None:
        data = message.get("bytes")
        try:
            if data is None:
                raise DataError("a message is text; send binary ones: a line of JSON, a line feed, the samples")
            self._live.push(data, self._loop.time())
            self._bad = 0
        except DataError as error:
            self._last_error = str(error)
            self._bad += 1

    async def _answer(self, hearing: "asyncio.Task[None]") -> str:
        """Returns why the stream ends, empty where the client has ended it."""
        last_sent_s = self._loop.time()
        while not hearing.done():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._new.wait(), TICK_S)
            self._new.clear()
            now = self._loop.time()
            end_s = self._live.find_due_window_end(now)
            if end_s is not None:
                shot = self._live.take_snapshot(end_s)
                tree = await self._loop.run_in_executor(self._pool, partial(self._predicted, shot))
            elif now - last_sent_s >= HOP_S:
                tree = {"time": self._live.newest_s, "waiting": "not a second of anything new has come"}
            else:
                tree = {}
            if tree:
                await self._socket.send_text(encode_json(tree | self._complaints()))
                last_sent_s = max(last_sent_s + HOP_S, now) if end_s is None else now
            if self._bad >= self._limits.in_a_row:
                return f"{self._bad} messages in a row cannot be used"
            if now - self._heard > self._limits.idle_s:
                return f"nothing came for {self._limits.idle_s:g} s"
        return ""

    def _complaints(self) -> dict[str, Any]:
        error, self._last_error = self._last_error, ""
        return {"refused": self._live.n_refused} | ({"error": error} if error else {})

    def _predicted(self, shot: StreamSnapshot) -> dict[str, Any]:
        p = self._predictor
        row, not_used = make_window(shot, p.preprocessing, p.modalities, p.eeg_channels, p.eeg_channel_names)
        tree = {"time": shot.stop_s, "start": shot.start_s, "used": _used(row, p), "not_used": not_used}
        if not tree["used"]:
            return tree | {"predicted": None, "probabilities": None}
        (answer,) = build_prediction_trees(p.predict_windows([row]), p.classes)
        return tree | answer


def _used(row: dict[str, Any], predictor: Predictor) -> list[str]:
    return [m for m in predictor.modalities if row[f"has_{m}"]]


async def _form(request: Request, body: bytes) -> dict[str, Any]:
    """The parts of a form: bytes, of text or of a file."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {k: v for k, v in request.scope.items() if k != "app"}  # with it, Starlette answers by itself
    found: dict[str, Any] = {}
    try:
        async with Request(scope, receive).form(max_files=3, max_fields=3, max_part_size=len(body)) as form:
            for name, value in form.multi_items():
                if name in found:
                    raise Refused(400, f"the form has {name!r} twice")
                found[name] = await value.read() if isinstance(value, UploadFile) else value.encode()
    except (MultiPartException, FormParserError, UnicodeError, KeyError, ValueError) as error:
        raise Refused(400, f"the form cannot be read: {' '.join(str(error).split())[:200]}") from None
    return found


async def _refused(request: Request, error: Refused) -> Response:
    return make_json_response(error.tree, error.status)


async def _http_error(request: Request, error: HTTPException) -> Response:
    allowed = "GET /health, POST /predict, WebSocket /stream"
    return make_json_response(
        {"error": f"{request.method} {request.url.path}: {error.detail}; there are {allowed}"}, error.status_code
    )

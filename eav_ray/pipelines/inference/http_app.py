"""A predictor behind HTTP and WebSocket: an ASGI app that knows nothing of Ray. Whatever comes in, no answer is a 500.

GET /health      what is served
POST /predict    one recording, any of its modalities: JSON, or a form with the parts `eeg` (JSON), `audio`, `video`
WS /stream       pieces of any modality (`messages.parse_chunk`); an answer every second on the last window
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

from eav_ray.data.streaming.messages import parse_json
from eav_ray.data.streaming.stream import HOP_S, LiveStream, StreamSnapshot, make_window
from eav_ray.data.streaming.upload import MAX_UPLOAD_S, parse_upload
from eav_ray.errors import DataError
from eav_ray.evaluation.predictor import Predictor, build_prediction_trees
from eav_ray.pipelines.inference.auth import TokenAuthMiddleware, encode_json, make_json_response

POLL_INTERVAL_S = 0.1


@dataclass(frozen=True)
class Limits:
    max_body_bytes: int = 32 * 2**20
    body_timeout_s: float = 60.0  # to send it
    body_idle_s: float = 10.0  # without a byte of it
    max_requests: int = 8  # at once; they are computed one after the other
    max_streams: int = 16
    idle_timeout_s: float = 60.0  # a stream without a message ends
    max_unusable_messages: int = 100  # messages that cannot be used; then a stream ends


class RequestError(Exception):
    """A request that gets no prediction: (status, tree of JSON)."""

    def __init__(self, status: int, error: str, **more: Any) -> None:
        super().__init__(error)
        self.status, self.body = status, {"error": error, **more}


def make_app(predictor: Predictor, name: str, token_digest: str = "", limits: Limits = Limits()) -> ASGIApp:
    """
    Args:
        name: Of the checkpoint, for /health.
        token_digest: `hash_token` of the token that every request must bring; empty for none.
    """
    service = PredictionService(predictor, name, limits)
    routes = [
        Route("/health", service.health, methods=["GET"]),
        Route("/predict", service.predict, methods=["POST"]),
        WebSocketRoute("/stream", service.stream),
    ]
    handlers: Any = {RequestError: _respond_to_request_error, HTTPException: _respond_to_http_error}
    return TokenAuthMiddleware(Starlette(routes=routes, exception_handlers=handlers), token_digest)


class PredictionService:
    def __init__(self, predictor: Predictor, name: str, limits: Limits) -> None:
        self._predictor, self._name, self._limits = predictor, name, limits
        self._started_s = time.monotonic()
        self.n_requests = self._n_streams = 0
        # One each: more at once would only share the cores, and hold more memory. A long recording holds up no stream.
        self._request_executor, self._stream_executor = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._request_lock = asyncio.Lock()

    async def health(self, request: Request) -> Response:
        p = self._predictor
        return make_json_response(
            {
                "ok": True,
                "checkpoint": self._name,
                "classes": list(p.classes),
                "modalities": list(p.modalities),
                "window_s": p.preprocessing.window_s,
                "eeg_channels": list(p.inputs.eeg_channel_names) or p.inputs.eeg_channels,
                "uptime_s": round(time.monotonic() - self._started_s, 1),
                "streams": self._n_streams,
                "longest_s": MAX_UPLOAD_S,
            }
        )

    async def predict(self, request: Request) -> Response:
        if self.n_requests >= self._limits.max_requests:
            raise RequestError(503, f"{self.n_requests} requests are being answered; try again")
        self.n_requests += 1
        try:
            body = await self._read_body(request)
            kind = request.headers.get("content-type", "")
            form = await _parse_form(request, body) if kind.lower().startswith("multipart/") else None
            work = partial(self.predict_body, body if form is None else form)
            await self._request_lock.acquire()
        except BaseException:
            self.n_requests -= 1
            raise
        # A client that goes away meanwhile does not end the work: it counts, and holds up others, until it is done.
        answer = asyncio.get_running_loop().run_in_executor(self._request_executor, work)
        answer.add_done_callback(self._finish_request)
        return make_json_response(await asyncio.shield(answer))

    def _finish_request(self, answer: "asyncio.Future[dict[str, Any]]") -> None:
        self._request_lock.release()
        self.n_requests -= 1
        if not answer.cancelled():
            answer.exception()  # asked for, in case nobody waits for it any more

    async def _read_body(self, request: Request) -> bytes:
        limits, max_bytes = self._limits, self._limits.max_body_bytes
        parts, size, now = [], 0, asyncio.get_running_loop().time
        end_s = now() + limits.body_timeout_s
        try:
            async with asyncio.timeout(limits.body_idle_s) as timeout:
                async for part in request.stream():
                    timeout.reschedule(min(end_s, now() + limits.body_idle_s))
                    parts.append(part)
                    size += len(part)
                    if size > max_bytes:
                        raise RequestError(
                            413, f"the request is longer than {max_bytes} bytes; send a shorter recording"
                        )
        except TimeoutError:
            raise RequestError(
                408,
                f"nothing of the request came for {limits.body_idle_s:g} s, or not all of it within "
                f"{limits.body_timeout_s:g} s",
            ) from None
        except ClientDisconnect:
            raise RequestError(400, "the request broke off") from None
        return b"".join(parts)

    def predict_body(self, request: bytes | dict[str, Any]) -> dict[str, Any]:
        p = self._predictor
        try:
            tree = request if isinstance(request, dict) else parse_json(request, "the request")
            if isinstance(tree.get("eeg"), bytes):
                tree["eeg"] = parse_json(tree["eeg"], "eeg")
            upload = parse_upload(tree)
        except DataError as error:
            raise RequestError(400, str(error)) from None
        answer = p.predict_upload(upload)
        if not answer["windows"]:
            reasons = "; ".join(f"{m}: {reason}" for m, reason in answer["not_used"].items())
            raise RequestError(422, f"nothing in this request can be used ({reasons})", not_used=answer["not_used"])
        return answer

    async def stream(self, socket: WebSocket) -> None:
        await socket.accept()
        if self._n_streams >= self._limits.max_streams:
            await socket.close(1013, f"{self._n_streams} streams are open; try again")
            return
        self._n_streams += 1
        try:
            await StreamSession(socket, self._predictor, self._limits, self._stream_executor).run()
        finally:
            self._n_streams -= 1


class StreamSession:
    """One client's stream: one task takes messages, however many; the other answers when it is time."""

    def __init__(self, socket: WebSocket, predictor: Predictor, limits: Limits, executor: ThreadPoolExecutor) -> None:
        self._socket, self._predictor, self._limits, self._executor = socket, predictor, limits, executor
        self._stream = LiveStream(predictor.inputs)
        self._message_arrived = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._last_message_s = self._loop.time()
        self._last_error, self._n_unusable = "", 0

    async def run(self) -> None:
        receiving = asyncio.create_task(self._receive_messages())
        try:
            with suppress(WebSocketDisconnect, RuntimeError):  # RuntimeError: it was closed meanwhile
                reason = await self._send_predictions(receiving)
                if reason and self._socket.application_state is WebSocketState.CONNECTED:
                    await self._socket.close(1008, reason)
        finally:
            receiving.cancel()
            with suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                await receiving

    async def _receive_messages(self) -> None:
        while (message := await self._socket.receive())["type"] == "websocket.receive":
            self._last_message_s = self._loop.time()
            self._handle_message(message)
            self._message_arrived.set()
            await asyncio.sleep(0)  # a flood of messages must not keep the answers from being made

    def _handle_message(self, message: Message) -> None:
        data = message.get("bytes")
        try:
            if data is None:
                raise DataError("a message is text; send binary ones: a line of JSON, a line feed, the samples")
            self._stream.push(data, self._loop.time())
            self._n_unusable = 0
        except DataError as error:
            self._last_error = str(error)
            self._n_unusable += 1

    async def _send_predictions(self, receiving: "asyncio.Task[None]") -> str:
        """Returns why the stream ends, empty where the client has ended it."""
        last_sent_s = self._loop.time()
        while not receiving.done():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._message_arrived.wait(), POLL_INTERVAL_S)
            self._message_arrived.clear()
            now = self._loop.time()
            end_s = self._stream.find_due_window_end(now)
            if end_s is not None:
                snapshot = self._stream.take_snapshot(end_s)
                tree = await self._loop.run_in_executor(self._executor, partial(self._predict_snapshot, snapshot))
            elif now - last_sent_s >= HOP_S:
                tree = {"time": self._stream.newest_s, "waiting": "not a second of anything new has come"}
            else:
                tree = {}
            if tree:
                await self._socket.send_text(encode_json(tree | self._collect_errors()))
                last_sent_s = max(last_sent_s + HOP_S, now) if end_s is None else now
            if self._n_unusable >= self._limits.max_unusable_messages:
                return f"{self._n_unusable} messages in a row cannot be used"
            if now - self._last_message_s > self._limits.idle_timeout_s:
                return f"nothing came for {self._limits.idle_timeout_s:g} s"
        return ""

    def _collect_errors(self) -> dict[str, Any]:
        error, self._last_error = self._last_error, ""
        return {"refused": self._stream.n_refused} | ({"error": error} if error else {})

    def _predict_snapshot(self, snapshot: StreamSnapshot) -> dict[str, Any]:
        p = self._predictor
        row, not_used = make_window(snapshot, p.inputs)
        tree = {
            "time": snapshot.stop_s,
            "start": snapshot.start_s,
            "used": p.list_used_modalities(row),
            "not_used": not_used,
        }
        if not tree["used"]:
            return tree | {"predicted": None, "probabilities": None}
        (answer,) = build_prediction_trees(p.predict_windows([row]), p.classes)
        return tree | answer


async def _parse_form(request: Request, body: bytes) -> dict[str, Any]:
    """The parts of a form: bytes, of text or of a file."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {k: v for k, v in request.scope.items() if k != "app"}  # with it, Starlette answers by itself
    parts: dict[str, Any] = {}
    try:
        async with Request(scope, receive).form(max_files=3, max_fields=3, max_part_size=len(body)) as form:
            for name, value in form.multi_items():
                if name in parts:
                    raise RequestError(400, f"the form has {name!r} twice")
                parts[name] = await value.read() if isinstance(value, UploadFile) else value.encode()
    except (MultiPartException, FormParserError, UnicodeError, KeyError, ValueError) as error:
        raise RequestError(400, f"the form cannot be read: {' '.join(str(error).split())[:200]}") from None
    return parts


async def _respond_to_request_error(request: Request, error: RequestError) -> Response:
    return make_json_response(error.body, error.status)


async def _respond_to_http_error(request: Request, error: HTTPException) -> Response:
    allowed = "GET /health, POST /predict, WebSocket /stream"
    return make_json_response(
        {"error": f"{request.method} {request.url.path}: {error.detail}; there are {allowed}"}, error.status_code
    )

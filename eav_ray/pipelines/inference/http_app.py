"""A predictor behind HTTP and WebSocket: an ASGI app that knows nothing of Ray. Whatever comes in, no answer is a 500.

GET /health      what is served
POST /predict    one recording, any of its modalities: JSON, or a form with the parts `eeg` (JSON), `audio`, `video` and
                 given features (JSON); of a model that normalises within subjects, `subject` (JSON) too
POST /measure    one recording of a subject, and `subject` if there were others: answers `subject`
WS /stream       pieces of any modality (`messages.parse_chunk`); an answer every second on the last window
"""

import asyncio
import time
from collections.abc import Callable
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

from eav_ray.data.streaming.messages import MAX_MESSAGE_BYTES, check_keys, parse_json
from eav_ray.data.streaming.stream import HOP_S, LiveStream, StreamSnapshot, make_window
from eav_ray.data.streaming.upload import MAX_UPLOAD_S, Upload, parse_upload
from eav_ray.errors import DataError
from eav_ray.evaluation.predictor import Predictor
from eav_ray.evaluation.subject_measurement import SubjectMeasurement
from eav_ray.evaluation.window_predictor import join_reasons
from eav_ray.pipelines.inference.auth import TokenAuthMiddleware, encode_json, make_json_response
from eav_ray.pipelines.inference.streamed_subject import StreamedSubject
from eav_ray.words import format_count

POLL_INTERVAL_S = 0.1
MAX_PARTS = 16  # of a form: the modalities and the subject
WEIGHTS, PROBABILITIES = ("weights", "corrected_weights"), ("probabilities", "by_modality")  # of an answer
SHARE_DIGITS = 4  # after the point; more would say nothing


@dataclass(frozen=True)
class Limits:
    max_body_bytes: int = 32 * 2**20
    body_timeout_s: float = 60.0  # to send it
    body_idle_s: float = 10.0  # without a byte of it
    max_requests: int = 8  # at once; they are computed one after the other
    max_streams: int = 16
    idle_timeout_s: float = 60.0  # a stream without a message ends
    max_unusable_messages: int = 100  # messages that cannot be used; then a stream ends
    n_measured_windows: int = 12  # of a stream, by which a subject is measured before what is normalised is used


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
        Route("/measure", service.measure, methods=["POST"]),
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
                "targets": list(p.targets),
                "modalities": list(p.modalities),
                "window_s": p.preprocessing.window_s,
                "eeg_channels": list(p.inputs.eeg_channel_names) or p.inputs.eeg_channels,
                "uptime_s": round(time.monotonic() - self._started_s, 1),
                "streams": self._n_streams,
                "longest_s": MAX_UPLOAD_S,
                "access": p.access.access,
                "normalised": list(p.subject_normalised),
            }
        )

    async def predict(self, request: Request) -> Response:
        return await self._answer(request, self.predict_body)

    async def measure(self, request: Request) -> Response:
        return await self._answer(request, self.measure_body)

    async def _answer(
        self, request: Request, compute: Callable[["bytes | dict[str, Any]"], dict[str, Any]]
    ) -> Response:
        if self.n_requests >= self._limits.max_requests:
            raise RequestError(503, f"{self.n_requests} requests are being answered; try again")
        self.n_requests += 1
        try:
            body = await self._read_body(request)
            kind = request.headers.get("content-type", "")
            form = await _parse_form(request, body) if kind.lower().startswith("multipart/") else None
            work = partial(compute, body if form is None else form)
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
        upload, measurement = self._parse_body(request)
        if p.subject_normalised and measurement is None:
            raise RequestError(
                422,
                f"the model normalises {', '.join(p.subject_normalised)} within subjects (split.access="
                f"{p.access.access}): send recordings of the subject to POST /measure, and with this one the `subject` "
                "that it answers",
            )
        answer = p.predict_upload(upload, measurement=measurement)
        if not answer["windows"]:
            reasons = join_reasons(answer["not_used"])
            raise RequestError(422, f"nothing in this request can be used ({reasons})", not_used=answer["not_used"])
        return round_shares(answer)

    def measure_body(self, request: bytes | dict[str, Any]) -> dict[str, Any]:
        """Measure a subject by one recording more."""
        p = self._predictor
        upload, earlier = self._parse_body(request)
        if not p.subject_normalised:
            raise RequestError(422, "the model does not normalise within subjects: predict without measuring them")
        earlier = earlier or SubjectMeasurement()
        if p.access.access != "unlabelled_block" and earlier.n_recordings >= p.access.access_recordings:
            raise RequestError(
                422,
                f"{format_count(earlier.n_recordings, 'recording')} of the subject are measured, as many as "
                "split.access_recordings lets count; predict by them",
            )
        found, not_used = p.measure_upload(upload)
        if not found.sums:
            reasons = join_reasons(not_used)
            raise RequestError(422, f"nothing in this request can be measured ({reasons})", not_used=not_used)
        total = earlier + found
        return {
            "subject": total.to_tree(self._name),
            "recordings": total.n_recordings,
            "measured_windows": dict(total.n_windows),
            "not_measured": not_used,
        }

    def _parse_body(self, request: bytes | dict[str, Any]) -> tuple[Upload, SubjectMeasurement | None]:
        p = self._predictor
        try:
            tree = dict(request) if isinstance(request, dict) else parse_json(request, "the request")
            if isinstance(tree.get("eeg"), bytes):
                tree["eeg"] = parse_json(tree["eeg"], "eeg")
            subject = tree.pop("subject", None)
            if isinstance(subject, bytes):
                subject = parse_json(subject, "subject")
            measurement = None if subject is None else parse_subject(subject, p, self._name)
            return parse_upload(tree, p.feature_names), measurement
        except DataError as error:
            raise RequestError(400, str(error)) from None

    async def stream(self, socket: WebSocket) -> None:
        await socket.accept()
        if self._n_streams >= self._limits.max_streams:
            await socket.close(1013, f"{self._n_streams} streams are open; try again")
            return
        self._n_streams += 1
        try:
            await StreamSession(socket, self._predictor, self._name, self._limits, self._stream_executor).run()
        finally:
            self._n_streams -= 1


def parse_subject(tree: Any, predictor: Predictor, model: str) -> SubjectMeasurement:
    """Read the measurement of a subject, whoever sent it.

    Raises:
        DataError: It is none, or the model measures nobody.
    """
    if not predictor.subject_normalised:
        raise DataError("the model does not normalise within subjects; leave `subject` out")
    return SubjectMeasurement.from_tree(tree, model, predictor.n_normalised_features)


class StreamSession:
    """One client's stream: one task takes messages, however many; the other answers when it is time.

    A model that normalises within subjects measures the one who streams, by windows that do not overlap, or is sent
    what POST /measure answered: a text message, `{"subject": {...}}`.
    """

    def __init__(
        self, socket: WebSocket, predictor: Predictor, name: str, limits: Limits, executor: ThreadPoolExecutor
    ) -> None:
        self._socket, self._predictor, self._limits, self._executor = socket, predictor, limits, executor
        self._name = name
        self._stream = LiveStream(predictor.inputs)
        self._subject = StreamedSubject(predictor, limits.n_measured_windows)
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
                self._take_subject(message.get("text") or "")
            else:
                self._stream.push(data, self._loop.time())
            self._n_unusable = 0
        except DataError as error:
            self._last_error = str(error)
            self._n_unusable += 1

    def _take_subject(self, text: str) -> None:
        if len(text) > MAX_MESSAGE_BYTES:
            raise DataError(f"a text message has {len(text)} characters; at most {MAX_MESSAGE_BYTES} are taken")
        try:
            tree = parse_json(text, "a text message")
            check_keys(tree, ("subject",), "a text message")
        except DataError as error:
            raise DataError(
                f"{error}; a text message holds `subject`, signals are binary: a line of JSON, a line feed, the samples"
            ) from None
        self._subject.replace(parse_subject(tree.get("subject"), self._predictor, self._name))

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
        tree: dict[str, Any] = {"time": snapshot.stop_s, "start": snapshot.start_s}
        measurement = None
        if p.subject_normalised:
            described = self._subject.measure(row, snapshot)
            measurement = self._subject.measurement
            (row,), unmeasured = p.hide_unmeasured([row], measurement, self._subject.n_wanted)
            not_used = unmeasured | not_used
            tree["subject"] = described
        tree |= {"used": p.list_used_modalities(row), "not_used": not_used}
        if not tree["used"]:
            return tree | {"predicted": None} | ({} if p.targets else {"probabilities": None})
        (answer,) = p.describe_predictions(p.predict_windows([row], measurement))
        return tree | round_shares(answer)


def round_shares(answer: dict[str, Any]) -> dict[str, Any]:
    """Round the probabilities and weights of an answer, and of its windows, to four digits after the point.

    Predicted numbers stay as they are: nobody knows in which unit they are small.
    """
    shares = (*WEIGHTS, *(PROBABILITIES if "probabilities" in answer else ()))
    rounded = {key: _round_numbers(value) if key in shares else value for key, value in answer.items()}
    return rounded | ({"windows": [round_shares(w) for w in answer["windows"]]} if "windows" in answer else {})


def _round_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _round_numbers(one) for key, one in value.items()}
    return round(value, SHARE_DIGITS) if isinstance(value, float) else value


async def _parse_form(request: Request, body: bytes) -> dict[str, Any]:
    """The parts of a form: bytes, of text or of a file."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {k: v for k, v in request.scope.items() if k != "app"}  # with it, Starlette answers by itself
    parts: dict[str, Any] = {}
    try:
        async with Request(scope, receive).form(
            max_files=MAX_PARTS, max_fields=MAX_PARTS, max_part_size=len(body)
        ) as form:
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
    allowed = "GET /health, POST /predict, POST /measure, WebSocket /stream"
    return make_json_response(
        {"error": f"{request.method} {request.url.path}: {error.detail}; there are {allowed}"}, error.status_code
    )

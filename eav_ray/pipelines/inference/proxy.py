"""What Ray Serve's HTTP proxy does before anything else: limits of each connection, and the token.

Ray Serve 2.60 waits for ever for the end of a request's headers, keeps whole bodies before a replica has room for them,
and answers everybody who asks which applications there are. `make_middlewares` runs in the process of its proxy, by a
variable that the proxy inherits from Ray Serve's controller.
"""

import os
from typing import Any

import uvicorn.config
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from eav_ray.distributed.ray_workarounds import SERVE_CALLBACK_VARIABLE, SERVE_NO_ROUTE_TEXTS
from eav_ray.pipelines.inference.auth import TokenAuthMiddleware, hash_token, make_json_response, read_token
from eav_ray.pipelines.inference.http_app import Limits

NO_ROUTE = "nothing is served here: a model that is being loaded will be soon, others are under another --route"
LIVENESS_PATH = "/-/healthz"  # of Ray Serve: "success", or why not, without a name of anything
# In the environment of the proxy: `hash_token` of the token, or else the file that holds the token.
DIGEST_VARIABLE, TOKEN_FILE_VARIABLE = "EAV_RAY_SERVE_DIGEST", "EAV_RAY_SERVE_TOKEN_FILE"
MAX_BODY_BYTES = 2 * Limits.max_body_bytes  # the application itself says so before, of what is only a little too long
MAX_CONNECTIONS = 512  # without those of streams; Ray starts its processes with 1024 descriptors or more


class LimitedProtocol(H11Protocol):
    """Closes a connection whose next request has no whole head in time; h11 bounds how long that may be."""

    head_timeout_s = 8.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        self._wait_for_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait_for_request()

    def _wait_for_request(self) -> None:
        self.loop.call_later(self.head_timeout_s, self._close_if_waiting, self.cycle)

    def _close_if_waiting(self, last: Any) -> None:
        is_waiting = self.cycle is last and (last is None or last.response_complete)
        if is_waiting and self.transport.get_protocol() is self:  # else it has become a stream
            self.transport.abort()


class ProxyGuard:
    """Answers for the application behind it: without the token, to a body that is too long, and where a replica ends.

    Args:
        token_digest: `hash_token` of the token of every request but those for `LIVENESS_PATH`; empty for none.
    """

    def __init__(self, app: ASGIApp, token_digest: str, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._app, self._max_bytes = app, max_body_bytes
        self._guarded = TokenAuthMiddleware(self._forward, token_digest, open_path=LIVENESS_PATH)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._guarded(scope, receive, send)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        size, has_failed, has_no_route = 0, False, False
        held: list[Message] = []  # the beginning of an answer that may be Ray Serve's own

        async def receive_limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            return {"type": "http.disconnect"} if size > self._max_bytes else message

        async def send_checked(message: Message) -> None:
            nonlocal has_failed, has_no_route
            has_failed = has_failed or message.get("status") == 500
            if message.get("status") == 404:
                held.append(message)
                return
            if held and all(text in message.get("body", b"") for text in SERVE_NO_ROUTE_TEXTS):
                has_no_route = True
            if not has_failed and not has_no_route:
                for earlier in (*held, message):
                    await send(earlier)
            held.clear()

        await self._app(scope, receive_limited, send_checked)
        if has_failed:  # Ray Serve's word for it is a traceback
            await make_json_response({"error": "the replica ended; try again"}, 503)(scope, receive, send)
        if has_no_route:
            await make_json_response({"error": f"{scope['path']}: {NO_ROUTE}"}, 404)(scope, receive, send)


def make_middlewares() -> list[Middleware]:
    """Make what Ray Serve puts around its proxy; it has no option for the class of its connections."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{LimitedProtocol.__name__}"
    digest = os.environ.get(DIGEST_VARIABLE, "")
    if file := os.environ.get(TOKEN_FILE_VARIABLE):
        digest = hash_token(read_token(file))
    return [Middleware(ProxyGuard, token_digest=digest)]


def list_proxy_variables(token: str) -> dict[str, str]:
    """List what the controller of Ray Serve must have in its environment, from which its proxies inherit it."""
    callback = f"{__name__}.{make_middlewares.__name__}"
    return {SERVE_CALLBACK_VARIABLE: callback, DIGEST_VARIABLE: hash_token(token) if token else ""}

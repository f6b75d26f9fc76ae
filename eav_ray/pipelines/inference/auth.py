"""Who may use a server: those who bring its token, which is wanted wherever it listens beyond loopback."""

import hashlib
import hmac
import json
import os
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from eav_ray.distributed.cluster import is_loopback
from eav_ray.errors import ConfigError

TOKEN_VARIABLE = "EAV_RAY_SERVE_TOKEN"  # in the environment
MIN_TOKEN_LENGTH = 16  # characters


def read_token(file: str) -> str:
    """The token that requests must bring: the content of a file, or what the environment says; empty for none.

    It is taken out of the environment, which all processes of a Ray inherit that is started from here.
    """
    token, where = os.environ.pop(TOKEN_VARIABLE, ""), TOKEN_VARIABLE
    if file:
        where = f"--token-file {file}"
        try:
            token = Path(file).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where} cannot be read: {getattr(error, 'strerror', None) or 'no text'}") from None
    token = token.strip()
    if (file or token) and (
        len(token) < MIN_TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token
    ):
        raise ConfigError(
            f"the token of {where} is no word of at least {MIN_TOKEN_LENGTH} printable ASCII characters; draw one by "
            "`openssl rand -hex 32`"
        )
    return token


def require_token(host: str, token: str) -> None:
    if not token and not is_loopback(host):
        raise ConfigError(
            f"--host is {host}, beyond loopback, and there is no token: anyone who reaches it could use the model; set "
            f"{TOKEN_VARIABLE} or --token-file, or use 127.0.0.1"
        )


def hash_token(token: str) -> str:
    """What a server keeps of a token. It is long and drawn at random, so that nobody finds it from this."""
    return hashlib.sha256(token.encode()).hexdigest()


class TokenAuthMiddleware:
    """Lets requests through that bring the token, and those for one path."""

    def __init__(self, app: ASGIApp, token_digest: str, open_path: str = "") -> None:
        self._app, self._digest, self._open_path = app, token_digest, open_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] == "http" and scope["path"] == self._open_path
        if scope["type"] in ("http", "websocket") and self._digest and not is_open:
            scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
            given = hash_token(token.strip()) if scheme.lower() == "bearer" else ""
            if not hmac.compare_digest(given, self._digest):
                await self._refuse(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = make_json_response(
            {"error": "no valid token; send it as the header `Authorization: Bearer TOKEN`"}, 401
        )
        response.headers["www-authenticate"] = "Bearer"
        if scope["type"] == "http":
            await response(scope, receive, send)
        elif "websocket.http.response" in scope.get("extensions", {}):
            await WebSocket(scope, receive, send).send_denial_response(response)
        else:  # the server makes a 403 of it
            await WebSocket(scope, receive, send).close(1008, "no valid token")


def encode_json(tree: dict[str, Any]) -> str:
    # Names that clients give may hold half characters, which UTF-8 has no bytes for.
    return json.dumps(tree, ensure_ascii=True, allow_nan=False)


def make_json_response(tree: dict[str, Any], status: int = 200) -> Response:
    return Response(encode_json(tree) + "\n", status, media_type="application/json")

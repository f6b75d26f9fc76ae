"""S3 on this machine: a server that writes conditionally, and a proxy before any server that fails chosen requests."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest
from moto.server import ThreadedMotoServer

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_REGION": "us-east-1"}
BUCKET = "lab"


@contextmanager
def open_conditional_server() -> Iterator[str]:
    """Start a server with a bucket; returns its address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=address, region_name="us-east-1").create_bucket(Bucket=BUCKET)
        try:
            yield address
        finally:
            server.stop()


@dataclass
class FaultyProxy:
    """Passes requests on, but for those that a fault is chosen for.

    Attributes:
        choose_fault: Takes method and path, and returns one of `refuse` (503), `lose` (the request is done, the answer
            is a 503), `hide` (404), `cut` (half of the answer), `hold` (until `is_open`), the
            number of another status, or nothing.
    """

    server: str
    choose_fault: Callable[[str, str], str] = lambda method, path: ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    is_open: threading.Event = field(default_factory=threading.Event)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        method, path = handler.command, handler.path
        self.requests.append((method, path))
        fault = self.choose_fault(method, path)
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        status, headers, data = 503, [], b""
        if fault == "hold":
            self.is_open.wait()
        if fault.isdigit():
            status = int(fault)
        elif fault not in ("refuse", "hide"):
            connection = http.client.HTTPConnection(self.server.removeprefix("http://"), timeout=20)
            connection.request(method, path, body, dict(handler.headers))
            response = connection.getresponse()
            status, headers, data = response.status, response.getheaders(), response.read()
            connection.close()
        if fault in ("lose", "hide"):
            status, headers, data = {"lose": 503, "hide": 404}[fault], [], b""
        handler.send_response(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "content-length", "connection", "server", "date"):
                handler.send_header(name, value)
        length = next((value for name, value in headers if name.lower() == "content-length"), str(len(data)))
        handler.send_header("Content-Length", length if method == "HEAD" else str(len(data)))
        handler.send_header("Connection", "close")
        handler.end_headers()
        if method != "HEAD":
            handler.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
        handler.close_connection = True


@contextmanager
def open_faulty_proxy(server: str) -> Iterator[tuple[str, FaultyProxy]]:
    """Start a proxy before a server; returns its address, and what decides on faults."""
    proxy = FaultyProxy(server)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            proxy.answer(self)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

        def log_message(self, format: str, *args: object) -> None: ...

    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http_server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http_server.server_port}", proxy
    finally:
        http_server.shutdown()
        http_server.server_close()
        thread.join()

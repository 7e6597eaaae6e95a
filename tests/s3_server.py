"""A real server that speaks S3, and one before it that fails as stores do."""

from __future__ import annotations

import contextlib
import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from featurecache.storage.object_store import shared_store

Address = tuple[str, int]
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextlib.contextmanager
def moto_server(bucket: str) -> Iterator[Address]:
    """moto's S3, with one bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1",
        aws_access_key_id="somebody", aws_secret_access_key="secret",
    )  # fmt: skip
    client.create_bucket(Bucket=bucket)
    client.close()
    try:
        yield host, port
    finally:
        server.stop()


def use_server(monkeypatch: pytest.MonkeyPatch, address: tuple[Any, ...]) -> None:
    """Let s3:// mean the server at this address, for stores that are opened from now on."""
    shared_store.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{address[0]}:{address[1]}")


class FaultyServer(ThreadingHTTPServer):
    """Stands before a server. `shares` is the share of requests that go wrong, by kind of fault:
    `503`, `slow`, `lost` (a put without a reply), `cut` (a reply that ends early), `lying` (a short
    reply that claims to be whole; never for objects whose names end as one of `honest`). Requests
    that fit one of `answers` get that. With `region` it serves requests of that region alone."""

    daemon_threads = True

    def __init__(self, behind: Address) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = behind
        self.random = random.Random(0)
        self.shares: dict[str, float] = {}
        self.counts: Counter[str] = Counter()
        self.answers: list[Answer] = []
        self.honest: tuple[str, ...] = ()
        self.region = ""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what this is for."""

    @contextlib.contextmanager
    def running(self) -> Iterator[FaultyServer]:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()


@dataclass
class Answer:
    """What requests for the objects with an ending get instead, `times` times (-1: always)."""

    ending: str
    status: int  # 0: the connection is lost
    code: str = ""
    method: str = "GET"
    times: int = -1

    def fits(self, method: str, path: str) -> bool:
        named = path.partition("?")[0].endswith(self.ending)
        if not (self.times and named and method == self.method):
            return False
        self.times -= 1
        return True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        region = self.server.region
        if region and f"/{region}/s3/" not in self.headers.get("Authorization", ""):
            return self.answer(301, {"x-amz-bucket-region": region}, b"")
        shares, chance = self.server.shares, self.server.random
        kind = next((kind for kind, share in shares.items() if chance.random() < share), "")
        if (kind == "lost") != (self.command == "PUT") and kind in ("lost", "cut", "lying"):
            kind = ""
        self.server.counts[kind] += 1
        for answer in self.server.answers:
            if answer.fits(self.command, self.path):
                text = f"<Error><Code>{answer.code}</Code><Message>{answer.code}</Message></Error>"
                if not answer.status:
                    self.close_connection = True
                    return None
                return self.answer(answer.status, {}, text.encode() if answer.code else b"")
        if kind == "503":
            return self.answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
        if kind == "slow":
            time.sleep(0.2)
        connection = http.client.HTTPConnection(*self.server.behind)
        connection.request(self.command, self.path, body, dict(self.headers))
        reply = connection.getresponse()
        data = reply.read()
        connection.close()
        if kind == "lost":
            self.close_connection = True
            return None
        headers = {n: v for n, v in reply.getheaders() if n.lower() != "transfer-encoding"}
        if region:
            headers["x-amz-bucket-region"] = region
        if kind == "cut" and len(data) > 1:
            return self.answer(reply.status, headers, data, len(data) // 2)
        name = self.path.partition("?")[0]
        is_object = "list-type" not in self.path and not name.endswith(self.server.honest)
        if kind == "lying" and len(data) > 1 and reply.status == 200 and is_object:
            data = data[: len(data) // 2]
            headers |= {"Content-Length": str(len(data))}
        self.answer(reply.status, headers, data)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = do

    def answer(
        self, status: int, headers: dict[str, str], data: bytes, sent: int | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:sent])
        if sent is not None:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass

"""A proxy before Azurite that writes down every request, and answers, delays or cuts the ones a test chooses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import unquote

from tests.servers import LOOPBACK, Azurite


@dataclass(frozen=True, slots=True)
class Answer:
    """What the proxy says in the store's place; a status of 0 cuts the connection instead."""

    status: int
    code: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        headers = {"x-ms-error-code": self.code, "Content-Length": "0", "Connection": "close", **self.headers}
        lines = [f"HTTP/1.1 {self.status} Said", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        return "\r\n".join(lines).encode()


class AzureProxy:
    """Between a store and Azurite. One request a connection, so that each is seen whole."""

    def __init__(self, azurite: Azurite) -> None:
        self.requests: list[str] = []
        """`GET /container/churn/1.0.0/model.joblib`, and `LIST /container` for a listing."""
        self.answer: Callable[[str], Answer | None] = lambda _request: None
        """Asked before each request is passed on."""
        self.port = 0
        self._azurite = azurite
        self._lines: set[asyncio.Task[None]] = set()

    @property
    def account_url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}/{Azurite.ACCOUNT}"

    @property
    def connection_string(self) -> str:
        name, key = Azurite.ACCOUNT, Azurite.KEY
        return f"DefaultEndpointsProtocol=http;AccountName={name};AccountKey={key};BlobEndpoint={self.account_url};"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[AzureProxy]:
        server = await asyncio.start_server(self._serve, LOOPBACK, self.port, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for line in self._lines:
                line.cancel()
            await asyncio.gather(*self._lines, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = cast("asyncio.Task[None]", asyncio.current_task())
        self._lines.add(line)
        line.add_done_callback(self._lines.discard)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._pass_on(reader, writer)
        finally:
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        request = _named(first)
        self.requests.append(request)
        answer = self.answer(request)
        if answer is not None:
            if answer.status:
                writer.write(answer.encode())
                await writer.drain()
            return
        length = next((int(line.partition(":")[2]) for line in lines if line.lower().startswith("content-length:")), 0)
        kept = [line for line in lines if line and not line.lower().startswith("connection:")]
        far_reader, far_writer = await asyncio.open_connection(LOOPBACK, self._azurite.port)
        try:
            far_writer.write("\r\n".join([first, *kept, "Connection: close", "", ""]).encode("latin-1"))
            far_writer.write(await reader.readexactly(length))
            await far_writer.drain()
            while piece := await far_reader.read(1 << 16):
                writer.write(piece)
                await writer.drain()
        finally:
            far_writer.close()


def _named(line: str) -> str:
    method, target, _ = line.split(" ")
    path, _, query = target.partition("?")
    path = unquote(path).removeprefix(f"/{Azurite.ACCOUNT}")
    return f"LIST {path}" if "comp=list" in query.split("&") else f"{method} {path}"

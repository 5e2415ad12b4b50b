"""The native engine's server, with a short way for the one method that callers wait on.

    HTTP/2 threads (outside the GIL) -> events, many at a time -> begin(bytes) ... reply(bytes) -> HTTP/2 threads

A task, a context and a coroutine for each call took several times as long as all that Millstream does for it.
Every other method is served as the engine does it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

from pygrpc_native import EVENT_CANCEL
from pygrpc_native.aio import Server

from contract.clock import now_us
from contract.errors import Refused
from gateway.calls import Begin, Cancellable
from gateway.status import status_of


class NativeCall:
    """One call that a caller waits on."""

    __slots__ = ("_call_id", "_server")

    def __init__(self, server: NativeServer, call_id: int) -> None:
        self._server = server
        self._call_id = call_id

    def reply(self, response: bytes) -> None:
        self._server.reply(self._call_id, response)

    def refuse(self, refused: Refused, request_id: str) -> None:
        self._server.refuse(self._call_id, refused, request_id)


class NativeServer(Server):
    """A server on the native front."""

    def __init__(self, options: Iterable[tuple[str, Any]]) -> None:
        # Beside one event loop a second thread for HTTP/2 has little to do but to wake the first.
        super().__init__(options=options, io_threads=1)
        self._direct: dict[str, Begin] = {}
        self._begins: dict[int, Begin] = {}
        self._open: dict[int, Cancellable] = {}
        """What was begun and not answered yet, by the engine's number of the call."""
        self._all_ended: asyncio.Event | None = None

    def answer_directly(self, path: str, begin: Begin) -> None:
        """From the start on, calls of this method are begun by `begin` instead of its handler."""
        self._direct[path] = begin

    async def start(self) -> None:
        """Serves; nothing that came in meanwhile is looked at before this returns."""
        await super().start()
        self._begins = {
            number: self._direct[path] for number, (path, _) in enumerate(self._table) if path in self._direct
        }

    async def stop(self, grace: float | None) -> None:
        """Ends all calls, after `grace` seconds those that are still open."""
        if self._open and grace:
            self._all_ended = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._all_ended.wait()
        for begun in list(self._open.values()):
            begun.cancel()
        self._open.clear()
        await super().stop(grace)

    def _on_events(self, events: list[tuple[Any, ...]]) -> None:
        if self._stopping:
            super()._on_events(events)
            return
        others: list[tuple[Any, ...]] = []
        came_us = now_us()
        for event in events:
            kind, call_id, method, payload, _, details = event
            if kind == EVENT_CANCEL:
                begun = self._open.pop(call_id, None)
                if begun is None:
                    others.append(event)
                else:
                    begun.cancel()
                    self._ended()
                continue
            begin = self._begins.get(method)
            if begin is None or (self._receive_limit is not None and len(payload) > self._receive_limit):
                others.append(event)
                continue
            begun = begin(payload, came_us, details[2], NativeCall(self, call_id))
            if begun is not None:
                self._open[call_id] = begun
        if others:
            super()._on_events(others)

    def reply(self, call_id: int, response: bytes) -> None:
        """Ends a call with its reply."""
        assert self._front is not None
        self._front.respond(call_id, response)
        self._open.pop(call_id, None)
        self._ended()

    def refuse(self, call_id: int, refused: Refused, request_id: str) -> None:
        """Ends a call with a status."""
        status = status_of(refused, request_id)
        assert self._front is not None
        metadata = list(status.trailing_metadata or ())
        self._front.fail(call_id, status.code.value[0], status.details or "", trailing_metadata=metadata)
        self._open.pop(call_id, None)
        self._ended()

    def _ended(self) -> None:
        if self._all_ended is not None and not self._open:
            self._all_ended.set()

"""Calls: a caller's end of one request, whichever way the reply gets there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from contract.errors import Refused


class Call(Protocol):
    """Who waits for one reply. One of the two is called, once."""

    def reply(self, response: bytes) -> None:
        """The serialized PredictResponse."""

    def refuse(self, refused: Refused, request_id: str) -> None:
        """Why there is none."""


class Cancellable(Protocol):
    """What was begun for a call."""

    def cancel(self) -> object:
        """Nobody waits for it any more."""


Begin = Callable[[bytes, int, float | None, Call], Cancellable | None]
"""Takes a serialized request, when it came in microseconds since the Unix epoch and the seconds until its deadline, and
sees to it that the call is answered; what to cancel when the caller goes away, or None where the call has been answered
already."""


@runtime_checkable
class DirectServer(Protocol):
    """A server that can do without a coroutine for each call of a method."""

    def answer_directly(self, path: str, begin: Begin) -> None:
        """From the start on, calls of this method are begun by `begin` instead of its handler."""


class FutureCall:
    """A coroutine that waits: `future` ends with the reply, or with Refused."""

    __slots__ = ("future",)

    def __init__(self) -> None:
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def reply(self, response: bytes) -> None:
        if not self.future.done():
            self.future.set_result(response)

    def refuse(self, refused: Refused, request_id: str) -> None:  # noqa: ARG002 - who awaits it knows the id
        if not self.future.done():
            self.future.set_exception(refused)

"""Withdrawals: the entry of a caller who went away leaves through the exit, if no worker has it yet."""

from __future__ import annotations

import asyncio

import redis.asyncio
import structlog
from redis.exceptions import RedisError

from contract.completion import INTERACTIVE, Item, Way, event, exit_calls, header
from contract.connection import run_async
from contract.errors import Reason, Refused
from contract.keys import Keys
from contract.scripts import EXIT
from gateway.waiters import Waiter
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire

log = structlog.get_logger()


class Withdrawals:
    """Gathers what is to be withdrawn during one turn of the event loop, one call of the exit per model."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, gateway: str) -> None:
        self._client = client
        self._keys = keys
        self._gateway = gateway
        self._waiting: dict[str, list[Waiter]] = {}
        self._calls: set[asyncio.Task[None]] = set()

    def withdraw(self, waiter: Waiter) -> None:
        """Takes back what a waiter appended; does nothing where a worker already has it."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._start)
        self._waiting.setdefault(waiter.model_id, []).append(waiter)

    async def drain(self) -> None:
        """Waits until everything taken in is done."""
        while self._waiting or self._calls:
            await asyncio.sleep(0)
            if self._calls:
                await asyncio.wait(self._calls)

    def _start(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for model_id, waiters in waiting.items():
            call = asyncio.create_task(self._call(model_id, waiters))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _call(self, model_id: str, waiters: list[Waiter]) -> None:
        head = header(wire.Header(model_id=model_id, worker=self._gateway))
        items = [self._item(waiter) for waiter in waiters]
        try:
            for call in exit_calls(self._keys.model(model_id), head, items):
                await run_async(self._client, EXIT, call.keys, call.arguments)
        except (RedisError, OSError) as error:
            # The entries stay: a worker finds their callers gone or their deadlines passed.
            log.warning("a withdrawal failed", model_id=model_id, entries=len(items), error=str(error))

    def _item(self, waiter: Waiter) -> Item:
        entry = wire.Entry.FromString(waiter.payload)
        refused = Refused(Reason.WITHDRAWN, "the caller went away before a worker took the request")
        response = v1.PredictResponse(
            request_id=entry.request_id, model_id=entry.model_id, version=entry.version, error=refused.to_error()
        )
        response.user_request_timestamp.FromMicroseconds(entry.user_request_us)
        return Item(
            way=Way(b"withdraw", 1, waiter.rows),
            entry_id=waiter.entry_id,
            event=event(waiter.payload, response.SerializeToString(), wire.CANCELLED, INTERACTIVE, waiter.entry_id),
            state=b"",
            wake=b"",
            request_id=entry.request_id,
        )

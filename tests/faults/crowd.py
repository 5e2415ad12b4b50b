"""Callers in a thread of their own, so that a test can break things meanwhile; each remembers what it was told."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import grpc
import grpc.aio

from ingest.producer import Producer
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc
from tests.conditions import eventually
from tests.stage import ODD, ask, failure

AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
"""Ask again: the request may have been accepted or not."""
PATIENCE_S = 60.0
"""How long a caller goes on asking for the same answer."""
_OPTIONS = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 300)]


@dataclass(frozen=True, slots=True)
class Told:
    """How one request ended for its caller."""

    x: float
    ended: str
    """OK, else the reason of the error, else its gRPC status."""
    began: float
    """When the last attempt began, by time.monotonic."""
    seconds: float
    """How long it took."""
    deadline_s: float
    message: str = ""
    """Of the error."""
    response: v1.PredictResponse | None = None


class Crowd:
    """So many callers, each of whom asks the next question after the answer to the last, until `finish`.

    Every request has an id of its own. Callers are spread over the gateways' addresses; who asks `again` does so under
    the same id, at the next address.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        users: int,
        name: str,
        *,
        model_id: str = ODD,
        deadline_s: float = 30.0,
        think_s: float = 0.05,
        again: bool = False,
    ) -> None:
        self._addresses = addresses
        self._users = users
        self._name = name
        self._model_id = model_id
        self._deadline_s = deadline_s
        self._think_s = think_s
        self._again = again
        self._numbers = itertools.count()
        self._over = False
        self.asked = 0
        self.told: dict[str, Told] = {}
        self.attempts_again: Counter[str] = Counter()
        """How attempts ended that were made again."""

    @property
    def waiting(self) -> int:
        """Requests that were asked and are not answered yet."""
        return self.asked - len(self.told)

    def under_way(self, answers: int = 50) -> None:
        """Returns once so many more were answered: what breaks from now on breaks under load."""
        before = len(self.told)
        eventually(lambda: len(self.told) >= before + answers, within=PATIENCE_S)
        assert not self._future.done()

    def finish(self, within: float = PATIENCE_S + 30) -> dict[str, Told]:
        """Asks nothing new and returns once everybody was told something."""
        self._over = True
        self._future.result(within)
        assert self.waiting == 0
        return self.told

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(1)
        self._future: Future[None] = self._pool.submit(asyncio.run, self._all())
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._over = True
        try:
            if kind is None:
                self.finish()
        finally:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)

    async def _all(self) -> None:
        channels = [grpc.aio.insecure_channel(address, options=_OPTIONS) for address in self._addresses]
        stubs = [v1_grpc.PredictorStub(channel) for channel in channels]
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(self._users):
                    tasks.create_task(self._user(number, stubs))
        finally:
            for channel in channels:
                await channel.close()

    async def _user(self, user: int, stubs: Sequence[Any]) -> None:
        while not self._over:
            number = next(self._numbers)
            request = ask(self._model_id, float(number), request_id=f"{self._name}-{number}")
            self.asked += 1
            self.told[request.request_id] = await self._answered(user, stubs, request, float(number))
            await asyncio.sleep(self._think_s)

    async def _answered(self, user: int, stubs: Sequence[Any], request: v1.PredictRequest, x: float) -> Told:
        until = time.monotonic() + PATIENCE_S
        for attempt in itertools.count(user):
            began = time.monotonic()
            try:
                response = await stubs[attempt % len(stubs)].Predict(request, timeout=self._deadline_s)
                return Told(x, "OK", began, time.monotonic() - began, self._deadline_s, response=response)
            except grpc.aio.AioRpcError as error:
                ended = failure(error).reason or error.code().name
                if not self._again or error.code() not in AGAIN or time.monotonic() > until:
                    return Told(x, ended, began, time.monotonic() - began, self._deadline_s, error.details() or "")
                self.attempts_again[ended] += 1
                await asyncio.sleep(0.1)
        raise AssertionError("the attempts have no end")


class Pushing:
    """A producer in a thread of its own: pushes a few entries at a time until the block is left."""

    def __init__(self, url: str, name: str, *, model_id: str = ODD, prefix: str = "ms") -> None:
        self._url = url
        self._name = name
        self._model_id = model_id
        self._prefix = prefix
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._push)
        self._error: Exception | None = None
        self.acknowledged: list[str] = []

    def under_way(self, count: int = 20) -> None:
        """Returns once so many more were acknowledged."""
        before = len(self.acknowledged)
        eventually(lambda: len(self.acknowledged) >= before + count, within=PATIENCE_S)

    def _push(self) -> None:
        try:
            with Producer(self._url, self._prefix, patience=60.0) as producer:
                for turn in itertools.count():
                    if self._over.wait(0.1):
                        return
                    entries = [{"inputs": [float(n)], "request_id": f"{self._name}-{turn}-{n}"} for n in range(10)]
                    self.acknowledged += producer.send_many(self._model_id, entries)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test gets it
            self._error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(90)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error

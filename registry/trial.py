"""Trials of new versions, apart from everything that serves: by a warden of our own, or by one that listens elsewhere.

What a trial takes and answers is in `contract.trial`; what it does is the warden's part.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from subprocess import DEVNULL

import anyio
import structlog
from anyio.abc import ByteStream, Process, UNIXSocketStream

from contract.record import Artifact
from contract.trial import (
    IDLE_S,
    LENGTH,
    MAX_ANSWERS_BYTES,
    MAX_VERDICT_BYTES,
    TrialFile,
    TrialHeader,
    Verdict,
    in_words,
)
from registry.watch.artifacts import ArtifactKeys

START_S = 60.0
"""For the warden to start and to take a request whole, in pieces that may each take as long."""
BREAKS = 2
"""So often a version may be on trial when the warden itself ends, before this is taken for its doing."""

SLACK_S = 3.0
"""So long before a warden of our own would end by itself another one is started."""

_log = structlog.get_logger()


class TrialUnavailable(Exception):
    """No trial could be held now; the version may be tried again later."""


@dataclass(frozen=True, slots=True)
class OnTrial:
    """An artifact of a version on trial, and how its bytes are read."""

    file: TrialFile
    chunks: Callable[[], AsyncIterator[bytes]]


Trial = Callable[[bytes, Sequence[OnTrial]], Awaitable[Verdict]]
"""Loads a version from its signature's JSON and its artifacts, apart from everything that serves.

Raises TrialUnavailable where that can't be done now.
"""

Replay = Callable[[bytes, Sequence[OnTrial], bytes], Awaitable[tuple[Verdict, bytes]]]
"""The same with recorded rows, a serialized Rows: the verdict, and what the version answers to them, unchecked."""


def on_trial(keys: ArtifactKeys, artifacts: Iterable[Artifact]) -> list[OnTrial]:
    """Artifacts that are in Redis, for a trial."""
    return [OnTrial(TrialFile(a.name, a.sha256, a.size), partial(keys.chunks, a)) for a in artifacts]


class Trials:
    """Tries versions, one at a time. Raises TrialUnavailable where none can be held."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = anyio.Lock()
        self._breaks: dict[bytes, int] = {}

    async def __call__(self, signature_json: bytes, artifacts: Sequence[OnTrial]) -> Verdict:
        """The verdict on a version, from its signature's JSON and its artifacts."""
        return (await self.replay(signature_json, artifacts, b""))[0]

    async def replay(self, signature_json: bytes, artifacts: Sequence[OnTrial], rows: bytes) -> tuple[Verdict, bytes]:
        """The same with recorded rows, a serialized Rows, and what it answers to them; nothing of that is checked."""
        async with self._lock:
            version = sha256(b"".join([signature_json, *(a.file.sha256.encode() for a in artifacts)])).digest()
            answers = b""
            try:
                async with self._line() as line:
                    verdict, answers = await self._ask(line, signature_json, artifacts, rows)
            except (anyio.BrokenResourceError, anyio.EndOfStream, ConnectionError, TimeoutError, ValueError) as error:
                self._breaks[version] = self._breaks.get(version, 0) + 1
                if self._breaks[version] < BREAKS:
                    raise TrialUnavailable(f"its trial broke off ({type(error).__name__}); it is tried again") from None
                verdict = Verdict(f"the process that watches over trials ended {BREAKS} times while it was tried")
            self._breaks.pop(version, None)
            return verdict, answers

    @asynccontextmanager
    async def _line(self) -> AsyncIterator[ByteStream]:
        """A line to a warden that waits for a request; unusable where the block was left with an exception."""
        raise NotImplementedError
        yield

    async def _ask(
        self, line: ByteStream, signature_json: bytes, artifacts: Sequence[OnTrial], rows: bytes
    ) -> tuple[Verdict, bytes]:
        header = TrialHeader(len(signature_json), tuple(artifact.file for artifact in artifacts), len(rows))
        await _send(line, header.encode() + signature_json)
        for artifact in artifacts:
            sent = 0
            async for chunk in artifact.chunks():
                sent += len(chunk)
                if sent <= artifact.file.size:
                    await _send(line, chunk)
            if sent != artifact.file.size:
                raise TrialUnavailable(f"{artifact.file.name} is not in Redis as it was put there")
        if rows:
            await _send(line, rows)
        with anyio.fail_after(self._seconds + START_S):
            verdict = Verdict.decode(await _receive_part(line, MAX_VERDICT_BYTES))
            return verdict, await _receive_part(line, MAX_ANSWERS_BYTES) if rows else b""


class OwnTrials(Trials):
    """By a warden that this process starts, as its own user. A context: the warden ends with it.

    `command` is what starts it, but for the number of the socket it answers on, which takes the place of `{fd}`.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], seconds: float) -> None:
        super().__init__(seconds)
        self._command = command
        self._environment = environment
        self._warden: tuple[Process, UNIXSocketStream] | None = None
        self._fresh_until = math.inf

    async def __aenter__(self) -> OwnTrials:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    @asynccontextmanager
    async def _line(self) -> AsyncIterator[ByteStream]:
        if self._warden is None or time.monotonic() > self._fresh_until:
            await self._end()
            self._warden = await self._start()
        try:
            yield self._warden[1]
        except BaseException:
            await self._end()
            raise
        self._fresh_until = time.monotonic() + IDLE_S - SLACK_S

    async def _start(self) -> tuple[Process, UNIXSocketStream]:
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            line = await UNIXSocketStream.from_socket(ours)
            fd = theirs.fileno()
            process = await anyio.open_process(
                [word.replace("{fd}", str(fd)) for word in self._command],
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=None,
                env=self._environment,
                cwd="/",
                start_new_session=True,
                pass_fds=[fd],
            )
        self._fresh_until = math.inf
        return process, line

    async def _end(self) -> None:
        if self._warden is None:
            return
        process, line = self._warden
        self._warden = None
        with anyio.CancelScope(shield=True):
            await line.aclose()
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class FarTrials(Trials):
    """By a warden that listens on a socket: another user's, without network and without keys."""

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__(seconds)
        self._path = path

    @asynccontextmanager
    async def _line(self) -> AsyncIterator[ByteStream]:
        try:
            line = await anyio.connect_unix(self._path)
        except OSError as error:
            raise TrialUnavailable(
                f"it can't be tried: unix:{self._path} does not answer ({error.strerror}); "
                f"start `millstream trial --listen unix:{self._path}`"
            ) from None
        async with line:
            yield line


def told(verdict: Verdict, model_id: str, version: str) -> None:
    """Says in the log what a trial saw of a version that passed it."""
    _log.info(
        "version tried",
        model_id=model_id,
        version=version,
        load_s=verdict.load_s,
        peak=in_words(verdict.peak_bytes),
        libraries=dict(verdict.libraries),
    )
    for warning in verdict.warnings:
        _log.warning(warning, model_id=model_id, version=version)


async def _send(line: ByteStream, content: bytes) -> None:
    with anyio.fail_after(START_S):
        await line.send(content)


async def _receive_part(line: ByteStream, most: int) -> bytes:
    """What stands behind its length; raises ValueError where that is too long."""
    (length,) = LENGTH.unpack(await _receive(line, LENGTH.size))
    if length > most:
        raise ValueError(f"{length:,} bytes where {most:,} are the most")
    return await _receive(line, length)


async def _receive(line: ByteStream, count: int) -> bytes:
    """So many bytes; raises EndOfStream where the other side closed before."""
    content = bytearray()
    while len(content) < count:
        content += await line.receive(count - len(content))
    return bytes(content)

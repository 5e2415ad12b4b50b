"""Lines: one connection to Redis each, for the two places where every request passes.

redis-py's clients take a connection from a pool, count, time and wrap each command, which costs more than the command.
Here commands go out as they come and answers come back in order; encoding and parsing are hiredis's. Everything else in
Millstream uses redis-py's clients.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import hiredis
import structlog
from redis.asyncio.connection import parse_url
from redis.connection import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from contract.connection import LOST, Argument
from contract.scripts import Script

Answered = Callable[[Any], None]
"""Gets what Redis answered: hiredis.ReplyError for a refusal, RedisConnectionError where there will be no answer."""

CONNECT_S = 5.0
PING_S = 5.0
LONGEST_PAUSE_S = 2.0

log = structlog.get_logger()


class Line:
    """A line for one thread."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        pool = ConnectionPool.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=CONNECT_S)
        # redis-py's connections ship without types.
        self._connection: Any = pool.make_connection()

    def ask(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Sends all commands at once; their answers, in order.

        Raises ResponseError where one was refused, what LOST names where the connection broke: it is made anew at the
        next call.
        """
        answers = self.ask_each(commands)
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise answer
        return answers

    def ask_each(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """The same, where the others' answers count though one was refused: its answer is the ResponseError.

        Raises what LOST names where the connection broke.
        """
        connection = self._connection
        answers: list[Any] = []
        try:
            # Packed here: redis-py looks at every argument before it hands them to hiredis.
            packed = [hiredis.pack_command(cast("Any", tuple(command))) for command in commands]
            connection.send_packed_command((b"".join(packed),), check_health=False)
            for _ in commands:
                try:
                    answers.append(connection.read_response())
                except ResponseError as error:
                    answers.append(error)
        except BaseException:
            # Answers that were not read would be taken for those of the next commands.
            connection.disconnect()
            raise
        return answers

    def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Runs a script, sending it where the server does not know it yet."""
        try:
            return self.ask([("EVALSHA", script.sha, len(keys), *keys, *arguments)])[0]
        except NoScriptError:
            return self.ask([("EVAL", script.source, len(keys), *keys, *arguments)])[0]

    def close(self) -> None:
        self._connection.disconnect()


class _Protocol(asyncio.Protocol):
    """One life of an event loop's line."""

    def __init__(self, on_push: Callable[[Any], None] | None) -> None:
        self._reader = hiredis.Reader()
        self._answered: deque[Answered] = deque()
        self._on_push = on_push
        self._transport: asyncio.Transport | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def send(self, command: Sequence[Argument], answered: Answered | None) -> None:
        assert self._transport is not None
        if self.lost.done():
            # Who keeps the line has not been told yet; nothing would ever answer this.
            if answered is not None:
                answered(RedisConnectionError("Redis closed the connection"))
            return
        if answered is not None:
            self._answered.append(answered)
        self._transport.write(hiredis.pack_command(cast("Any", tuple(command))))

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        try:
            reader.feed(data)
            while (answer := reader.gets()) is not False:
                if isinstance(answer, hiredis.PushNotification):
                    if self._on_push is not None:
                        self._on_push(answer)
                elif self._answered:
                    self._answered.popleft()(answer)
        except hiredis.ProtocolError as error:
            log.error("what came from Redis is no RESP", error=str(error))
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        gone = RedisConnectionError(str(exc) if exc else "Redis closed the connection")
        # Before anybody is answered: who is, may send the next thing at once.
        if not self.lost.done():
            self.lost.set_result(None)
        waiting, self._answered = self._answered, deque()
        for answered in waiting:
            answered(gone)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class AsyncLine:
    """A line for an event loop, which comes back when it broke; `keep` must be running.

    `on_push` gets messages of subscriptions, `on_open` is called each time the connection stands, `on_lost` each time
    it is gone.
    """

    def __init__(
        self,
        url: str,
        *,
        on_push: Callable[[Any], None] | None = None,
        on_open: Callable[[], None] = lambda: None,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._options: dict[str, Any] = dict(parse_url(url))
        self._on_push = on_push
        self._on_open = on_open
        self._on_lost = on_lost
        self._now: _Protocol | None = None

    @property
    def open(self) -> bool:
        return self._now is not None

    def send(self, command: Sequence[Argument], answered: Answered | None) -> None:
        """Sends one command; `answered` is called once, from the event loop. None: its answer is a push."""
        if self._now is not None:
            self._now.send(command, answered)
        elif answered is not None:
            answered(RedisConnectionError("Redis can't be reached"))

    def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Argument], answered: Answered) -> None:
        """Runs a script, sending it where the server does not know it yet."""

        def checked(answer: Any) -> None:
            if isinstance(answer, hiredis.ReplyError) and str(answer).startswith("NOSCRIPT"):
                self.send(("EVAL", script.source, len(keys), *keys, *arguments), answered)
            else:
                answered(answer)

        self.send(("EVALSHA", script.sha, len(keys), *keys, *arguments), checked)

    async def keep(self) -> None:
        """Keeps the line open until cancelled."""
        pause, told = 0.02, False
        try:
            while True:
                try:
                    async with asyncio.timeout(CONNECT_S):
                        line = await self._connect()
                except (*LOST, ResponseError, TimeoutError, ssl.SSLError) as error:
                    if not told:
                        log.warning("a line to Redis can't be opened; trying on", error=str(error) or "timed out")
                        told = True
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, LONGEST_PAUSE_S)
                    continue
                pause, told = 0.02, False
                self._now = line
                self._on_open()
                try:
                    await self._watch(line)
                finally:
                    self._now = None
                    line.abort()
                    self._on_lost()
        finally:
            self._now = None

    async def _watch(self, line: _Protocol) -> None:
        """Returns when the line is gone, or silent: a server that hangs closes nothing."""
        while not line.lost.done():
            await asyncio.wait((line.lost,), timeout=PING_S)
            if line.lost.done():
                return
            pong = asyncio.Event()
            line.send(("PING",), lambda _answer, pong=pong: pong.set())  # type: ignore[misc]
            try:
                async with asyncio.timeout(PING_S):
                    await pong.wait()
            except TimeoutError:
                log.warning("a line to Redis is silent; it is made anew")
                return

    async def _connect(self) -> _Protocol:
        options = self._options
        loop = asyncio.get_running_loop()
        line: _Protocol
        if path := options.get("path"):
            _, line = await loop.create_unix_connection(lambda: _Protocol(self._on_push), path)
        else:
            secure = "SSL" in getattr(options.get("connection_class"), "__name__", "")
            host, port = options.get("host", "localhost"), options.get("port", 6379)
            context = _tls(options) if secure else None
            _, line = await loop.create_connection(lambda: _Protocol(self._on_push), host, port, ssl=context)
        hello: list[Argument] = ["HELLO", 3]
        if password := options.get("password"):
            hello += ["AUTH", options.get("username") or "default", password]
        commands: list[list[Argument]] = [hello]
        if options.get("db"):
            commands.append(["SELECT", options["db"]])
        for command in commands:
            answer: asyncio.Future[Any] = loop.create_future()
            line.send(command, answer.set_result)
            result = await answer
            if isinstance(result, hiredis.ReplyError):
                line.abort()
                raise ResponseError(str(result))
            if isinstance(result, Exception):
                raise result
        return line


def _tls(options: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    if certificate := options.get("ssl_certfile"):
        context.load_cert_chain(certificate, options.get("ssl_keyfile"))
    if options.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context

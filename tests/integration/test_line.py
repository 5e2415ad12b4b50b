"""Lines to a real server: answers in order, faults as answers, and coming back after it was gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import hiredis
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from contract.line import AsyncLine, Line
from contract.scripts import Script
from tests.conditions import eventually_async
from tests.servers import RedisServer

pytestmark = pytest.mark.integration

ECHO = Script.named("exit")


@contextlib.asynccontextmanager
async def kept(line: AsyncLine) -> AsyncIterator[AsyncLine]:
    keeping = asyncio.create_task(line.keep())
    try:
        await eventually_async(lambda: _true(line.open))
        yield line
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def _true(value: bool) -> bool:
    return value


async def asked(line: AsyncLine, *command: str | int) -> Any:
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    line.send(command, answer.set_result)
    return await asyncio.wait_for(answer, 10)


def test_a_lines_answers_come_in_the_order_of_its_commands(redis_url: str, prefix: str) -> None:
    line = Line(redis_url, timeout_s=5.0)
    assert line.ask([("SET", f"{prefix}:a", 1), ("INCR", f"{prefix}:a"), ("GET", f"{prefix}:a")]) == [b"OK", 2, b"2"]
    line.close()


def test_a_refused_command_does_not_shift_the_answers_of_the_next(redis_url: str, prefix: str) -> None:
    line = Line(redis_url, timeout_s=5.0)
    with pytest.raises(ResponseError):
        line.ask([("SET", f"{prefix}:a", "x"), ("INCR", f"{prefix}:a"), ("GET", f"{prefix}:a")])
    assert line.ask([("GET", f"{prefix}:a")]) == [b"x"]
    line.close()


def test_a_line_is_made_anew_after_the_server_was_gone(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        line = Line(server.url, timeout_s=5.0)
        assert line.ask([("PING",)]) == [b"PONG"]
        server.kill()
        with pytest.raises((RedisConnectionError, OSError)):
            line.ask([("PING",)])
        server.start()
        assert line.ask([("PING",)]) == [b"PONG"]
        line.close()


def test_a_script_the_server_does_not_know_is_sent(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        line = Line(server.url, timeout_s=5.0)
        # Its own refusal of arguments that do not fit shows that it ran.
        with pytest.raises(ResponseError, match="do not fit together"):
            line.run(ECHO, ["a"], ["b"])
        line.close()


@pytest.mark.anyio
async def test_an_event_loops_line_answers_in_order_and_faults_are_answers(redis_url: str, prefix: str) -> None:
    async with kept(AsyncLine(redis_url)) as line:
        first, fault, last = await asyncio.gather(
            asked(line, "SET", f"{prefix}:a", "x"),
            asked(line, "INCR", f"{prefix}:a"),
            asked(line, "GET", f"{prefix}:a"),
        )
    assert (first, last) == (b"OK", b"x")
    assert isinstance(fault, hiredis.ReplyError)


@pytest.mark.anyio
async def test_what_waits_for_an_answer_is_told_when_the_server_dies_and_the_line_comes_back(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        opened: list[bool] = []
        line = AsyncLine(server.url, on_open=lambda: opened.append(True), on_lost=lambda: opened.append(False))
        async with kept(line):
            waiting = asyncio.create_task(asked(line, "BLPOP", "nothing", 0))
            await asyncio.sleep(0)
            server.kill()
            assert isinstance(await waiting, RedisConnectionError)
            assert isinstance(await asked(line, "PING"), RedisConnectionError)
            server.start()
            await eventually_async(lambda: _true(line.open), within=10)
            assert await asked(line, "PING") == b"PONG"
            assert opened == [True, False, True]


@pytest.mark.anyio
async def test_messages_of_a_subscription_are_pushed(redis_url: str, prefix: str, redis_client: Any) -> None:
    pushed: asyncio.Queue[Any] = asyncio.Queue()
    async with kept(AsyncLine(redis_url, on_push=pushed.put_nowait)) as line:
        line.send(("SSUBSCRIBE", f"{prefix}:c"), None)
        assert (await asyncio.wait_for(pushed.get(), 10))[0] == b"ssubscribe"
        redis_client.execute_command("SPUBLISH", f"{prefix}:c", b"hello")
        assert list(await asyncio.wait_for(pushed.get(), 10)) == [b"smessage", f"{prefix}:c".encode(), b"hello"]
        assert await asked(line, "PING") == b"PONG"


@pytest.mark.anyio
async def test_a_wrong_password_is_said_once_and_not_taken_for_an_answer(tmp_path: Path) -> None:
    with RedisServer(tmp_path, port=0) as server, server.client() as client:
        client.config_set("requirepass", "secret")
        line = AsyncLine(server.url.replace("redis://", "redis://:wrong@"))
        with pytest.raises(ResponseError, match="WRONGPASS"):
            await line._connect()
        async with kept(AsyncLine(server.url.replace("redis://", "redis://:secret@"))) as right:
            assert await asked(right, "PING") == b"PONG"
        client.execute_command("AUTH", "secret")
        client.config_set("requirepass", "")

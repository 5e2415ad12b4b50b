"""A child that beats is ended when it falls silent for longer than it said, and another takes its place."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.integration.test_processes_supervisor import House, in_house, until

BEATS = """
import ctypes, threading
from millstream.local.ready import notify_beat, notify_ready_to_beat
def beat(within):
    while True:
        notify_beat(within)
        time.sleep(0.02)
note("life")
"""
"""What a child does that beats; then comes what it is."""

HOLDS_THE_LOCK = """
if (here / "notes").read_text().count("life") == 1:
    ctypes.PyDLL(None).sleep(3600)
"""


def test_one_that_holds_pythons_lock_is_ended_and_another_takes_its_place(tmp_path: Path) -> None:
    program = (
        BEATS
        + "threading.Thread(target=beat, args=(1.0,), daemon=True).start()\nnotify_beat(1.0)\nnotify_ready_to_beat()\n"
        + HOLDS_THE_LOCK
        + "signal.pause()"
    )

    async def scene(house: House) -> None:
        first = await house.supervisor.start(house.child("worker", program))
        await until(lambda: house.serving().get("worker", first) != first)
        assert house.deaths == [("worker", first, -signal.SIGKILL)]
        assert house.notes() == ["life", "life"]

    in_house(tmp_path, scene)


def test_who_says_that_it_will_be_silent_for_long_is_waited_for(tmp_path: Path) -> None:
    """As while a model is loaded: the lock is held for longer than a beat takes otherwise."""
    program = BEATS + (
        "notify_ready_to_beat()\nnotify_beat(0.2)\nnotify_beat(60.0)\n"
        "ctypes.PyDLL(None).usleep(600000)\nnotify_beat(60.0)\nnote('loaded')\nsignal.pause()"
    )

    async def scene(house: House) -> None:
        first = await house.supervisor.start(house.child("worker", program))
        await until(lambda: "loaded" in house.notes())
        assert house.serving() == {"worker": first}
        assert house.deaths == []

    in_house(tmp_path, scene)


def test_a_frozen_child_is_ended_too(tmp_path: Path) -> None:
    program = BEATS + "notify_beat(1.0)\nnotify_ready_to_beat()\nbeat(1.0)"

    async def scene(house: House) -> None:
        first = await house.supervisor.start(house.child("worker", program))
        os.kill(first, signal.SIGSTOP)
        await until(lambda: house.serving().get("worker", first) != first)
        assert house.deaths == [("worker", first, -signal.SIGKILL)]

    in_house(tmp_path, scene)


def test_who_never_beats_is_left_alone(tmp_path: Path) -> None:
    """Gateway, sink and registry say that they serve, and close the pipe."""

    async def scene(house: House) -> None:
        first = await house.supervisor.start(house.child("sink", "notify_ready()\nnote('on')\nsignal.pause()"))
        await until(lambda: house.notes() == ["on"])
        assert house.serving() == {"sink": first}
        assert house.deaths == []

    in_house(tmp_path, scene)


def test_more_beats_than_anybody_reads_do_not_hold_the_child_up(tmp_path: Path) -> None:
    """The pipe holds 64 kB; the child goes on when it is full."""
    program = BEATS + (
        "notify_ready_to_beat()\nfor _ in range(20000):\n    notify_beat(60.0)\nnote('done')\nsignal.pause()"
    )

    async def scene(house: House) -> None:
        # This very task holds the event loop meanwhile, so that the supervisor reads nothing.
        await house.supervisor.start(house.child("worker", program))
        deadline = time.monotonic() + 20
        while "done" not in house.notes():
            assert time.monotonic() < deadline
            time.sleep(0.01)  # noqa: ASYNC251
        await until(lambda: house.serving())

    in_house(tmp_path, scene)

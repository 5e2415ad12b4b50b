"""The supervisor, with real children: it knows at once who died, restarts with measure, and ends them in order."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from millstream.local.alive import start_mark
from millstream.local.child import Backoff, Child, ChildFailed
from millstream.local.life import Life
from millstream.local.supervisor import Supervisor

ROOT = Path(__file__).parents[2]

SERVE = """
import os, signal, sys, time
from pathlib import Path
from millstream.local.ready import READY_FD, notify_failed, notify_progress, notify_ready
here = Path(sys.argv[1])
def note(word):
    with (here / "notes").open("a") as file:
        file.write(word + "\\n")
"""
QUICK = Backoff()
ENDLESS = Backoff(first=3600, most=3600)  # an hour of pause: a test that waited for it would not end
SLEEP = "notify_ready()\nsignal.pause()"


class House:
    """A supervisor with its folder, what it was told, and children that are short Python programs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.deaths: list[tuple[str, int, int]] = []
        self.progress: list[tuple[str, str]] = []
        (folder / "logs").mkdir()
        self.supervisor = Supervisor(folder / "logs", on_death=self.on_death, on_progress=self.on_progress)

    async def on_death(self, name: str, pid: int, returncode: int) -> None:
        self.deaths.append((name, pid, returncode))

    def on_progress(self, name: str, text: str) -> None:
        self.progress.append((name, text))

    def child(
        self, name: str, program: str = SLEEP, *, restart: bool = True, backoff: Backoff = QUICK, **env: str
    ) -> Child:
        argv = (sys.executable, "-c", SERVE + program, os.fspath(self.folder))
        return Child(name, argv, {"PYTHONPATH": os.fspath(ROOT), **env}, restart=restart, backoff=backoff)

    def notes(self) -> list[str]:
        at = self.folder / "notes"
        return at.read_text().split() if at.exists() else []

    def pid(self, name: str) -> int | None:
        return next((standing.pid for standing in self.supervisor.standings() if standing.name == name), None)

    def serving(self) -> dict[str, int]:
        return {s.name: s.pid for s in self.supervisor.standings() if s.state == "serving" and s.pid is not None}


async def until(predicate: Callable[[], object], within: float = 20.0) -> None:
    with anyio.fail_after(within):
        while not predicate():  # noqa: ASYNC110
            await anyio.sleep(0.005)


def in_house(folder: Path, scene: Callable[[House], Awaitable[None]]) -> House:
    """Play a scene with a supervisor; whatever comes of it, no child may be left."""

    async def play() -> House:
        house = House(folder)
        async with house.supervisor:
            await scene(house)
        return house

    house = anyio.run(play)
    assert house.supervisor.standings() == ()
    assert [pid for _, pid, _ in house.deaths if start_mark(pid) is not None] == []
    return house


def test_start_returns_once_the_child_says_that_it_serves(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        pid = await house.supervisor.start(house.child("worker", "note(os.environ['COLOUR'])\n" + SLEEP, COLOUR="blue"))
        assert house.notes() == ["blue"]
        assert house.serving() == {"worker": pid}

    in_house(tmp_path, scene)


def test_a_child_leads_a_session_of_its_own(tmp_path: Path) -> None:
    """Ctrl-C goes to the terminal's foreground group, and only `up` is to hear it."""

    async def scene(house: House) -> None:
        pid = await house.supervisor.start(house.child("worker"))
        assert (os.getsid(pid), os.getpgid(pid)) == (pid, pid)

    in_house(tmp_path, scene)


def test_output_goes_to_the_log_of_its_name_and_adds_up(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        program = "print('out', flush=True); print('err', file=sys.stderr, flush=True)\n" + SLEEP
        await house.supervisor.start(house.child("sink", program))
        await house.supervisor.replace("sink")

    in_house(tmp_path, scene)
    assert (tmp_path / "logs" / "sink.log").read_text() == "out\nerr\nout\nerr\n"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("print('why'); notify_failed('port 50051 is taken')", "port 50051 is taken"),
        ("print('why', flush=True); notify_failed('port 50051 is taken'); signal.pause()", "port 50051 is taken"),
        ("print('why'); sys.exit(3)", "it ended with code 3"),
        ("print('why', flush=True); os.kill(os.getpid(), 9)", "it was ended by SIGKILL"),
        (
            "print('why', flush=True); os.close(int(os.environ['MILLSTREAM_READY_FD'])); signal.pause()",
            "closed its pipe",
        ),
    ],
)
def test_a_failed_start_says_why_and_shows_the_log(tmp_path: Path, program: str, reason: str) -> None:
    async def scene(house: House) -> None:
        (tmp_path / "logs" / "gateway.log").write_text("from an earlier life\n")
        with pytest.raises(ChildFailed, match="gateway did not start: ") as failed:
            await house.supervisor.start(house.child("gateway", program))
        assert reason in failed.value.reason
        assert failed.value.lines == ("why",)
        assert "\n    why" in str(failed.value)
        assert house.supervisor.standings() == ()

    in_house(tmp_path, scene)


def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        with pytest.raises(ChildFailed, match="can't run /no/such/program: No such file"):
            await house.supervisor.start(Child("worker", ("/no/such/program",)))

    in_house(tmp_path, scene)


def test_a_silent_child_is_given_up_and_killed(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        with pytest.raises(ChildFailed, match=r"it said nothing for 0\.3 s"):
            await house.supervisor.start(house.child("worker", "signal.pause()"), ready_within=0.3)

    assert [returncode for _, _, returncode in in_house(tmp_path, scene).deaths] == [-9]


def test_progress_starts_the_patience_anew(tmp_path: Path) -> None:
    """2.4 s of start-up with a patience of 1.5 s: it comes up because it speaks every 0.3 s."""

    async def scene(house: House) -> None:
        program = "for i in range(8):\n    notify_progress(f'{i}/8')\n    time.sleep(0.3)\n" + SLEEP
        await house.supervisor.start(house.child("worker", program), ready_within=1.5)
        assert house.progress == [("worker", f"{i}/8") for i in range(8)]

    in_house(tmp_path, scene)


def test_a_child_without_a_voice_serves_once_it_is_started(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        pid = await house.supervisor.start(Child("sleeper", ("sleep", "3600")), ready_within=None)
        assert house.serving() == {"sleeper": pid}

    in_house(tmp_path, scene)


def test_two_children_of_one_name_are_refused(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        await house.supervisor.start(house.child("worker"))
        with pytest.raises(ValueError, match="named worker already"):
            await house.supervisor.start(house.child("worker"))

    in_house(tmp_path, scene)


def test_a_death_is_passed_on_once_and_another_takes_the_place(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        first = await house.supervisor.start(house.child("worker"))
        os.kill(first, signal.SIGKILL)
        await until(lambda: house.deaths)
        assert house.deaths == [("worker", first, -9)]
        await until(house.serving)
        assert house.pid("worker") != first
        assert house.supervisor.standings()[0].restarts == 1

    in_house(tmp_path, scene)


def test_what_fails_after_a_death_does_not_end_the_supervision(tmp_path: Path) -> None:
    async def play() -> None:
        failed: list[int] = []

        async def broken(name: str, pid: int, returncode: int) -> None:
            failed.append(pid)
            raise ConnectionError("Redis is away")

        async with Supervisor(tmp_path, on_death=broken) as supervisor:
            sleeper = Child("sleeper", ("sleep", "3600"))
            pids = [await supervisor.start(sleeper, ready_within=None)]
            for _ in range(2):
                os.kill(pids[-1], signal.SIGKILL)
                await until(lambda: len(failed) == len(pids))
                await until(lambda: [standing.state for standing in supervisor.standings()] == ["serving"])
                pids.append(supervisor.standings()[0].pid or 0)
            assert failed == pids[:2]
            assert len(set(pids)) == 3

    anyio.run(play)


def test_a_crash_loop_is_slowed_down(tmp_path: Path) -> None:
    """Six lives need five pauses, 0.05 + 0.1 + 0.2 + 0.4 + 0.8 s, on any machine."""

    async def scene(house: House) -> None:
        began = time.monotonic()
        await house.supervisor.start(house.child("worker", "note('life'); notify_ready(); sys.exit(1)"))
        await until(lambda: len(house.notes()) == 6)
        assert time.monotonic() - began >= 1.55

    in_house(tmp_path, scene)


@pytest.mark.parametrize(
    ("before", "lived", "streak", "delay"),
    [
        (0, 0.0, 1, 0.05),
        (1, 0.0, 2, 0.1),
        (6, 9.9, 7, 3.2),
        (7, 0.0, 8, 5.0),
        (5000, 0.0, 5001, 5.0),
        (9, 10.0, 1, 0.05),
    ],
)
def test_backoff_doubles_to_five_seconds_and_forgives_after_a_long_life(
    before: int, lived: float, streak: int, delay: float
) -> None:
    assert Backoff().streak(before, lived) == streak
    assert Backoff().delay(streak) == pytest.approx(delay)


def test_a_child_that_is_not_to_be_restarted_is_not(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        await house.supervisor.start(house.child("once", "note('life'); notify_ready(); sys.exit(0)", restart=False))
        await until(lambda: house.supervisor.standings() == ())

    house = in_house(tmp_path, scene)
    assert house.notes() == ["life"]


ON_TERM = """
def term(*_):
    note(os.environ["ME"])
    sys.exit(0)
signal.signal(signal.SIGTERM, term)
"""


def test_stop_goes_group_by_group(tmp_path: Path) -> None:
    """The gateway notes its end slowly; nobody else may have begun before."""

    async def scene(house: House) -> None:
        slow = ON_TERM.replace("note(", "time.sleep(0.3); note(")
        for name in ("worker-1", "sink", "worker-2"):
            await house.supervisor.start(house.child(name, ON_TERM + SLEEP, ME=name.partition("-")[0]))
        await house.supervisor.start(house.child("gateway", slow + SLEEP, ME="gateway"))
        await house.supervisor.stop([["gateway"], ["worker-1", "worker-2", "worker-9"], ["sink"]], grace=20)
        assert house.supervisor.standings() == ()

    house = in_house(tmp_path, scene)
    assert house.notes() == ["gateway", "worker", "worker", "sink"]
    assert [returncode for _, _, returncode in house.deaths] == [0, 0, 0, 0]


def test_who_does_not_stop_in_time_is_killed(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        await house.supervisor.start(house.child("deaf", deaf + SLEEP))
        await house.supervisor.stop(grace=0.2)

    assert [returncode for _, _, returncode in in_house(tmp_path, scene).deaths] == [-9]


def test_a_stopped_process_is_ended_too(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        pid = await house.supervisor.start(house.child("frozen"))
        os.kill(pid, signal.SIGSTOP)
        # A SIGTERM that comes before it has stopped would still end it.
        await until(lambda: ") T " in Path(f"/proc/{pid}/stat").read_text())
        await house.supervisor.stop(grace=0.2)

    assert [returncode for _, _, returncode in in_house(tmp_path, scene).deaths] == [-9]


def test_later_groups_are_looked_after_while_earlier_ones_end(tmp_path: Path) -> None:
    """The gateway's last requests need a worker, and one dies just then."""

    async def scene(house: House) -> None:
        patient = ON_TERM.replace("sys.exit", "while not (here / 'go').exists(): time.sleep(0.01)\n    sys.exit")
        await house.supervisor.start(house.child("gateway", patient + SLEEP, ME="ending"))
        worker = await house.supervisor.start(house.child("worker"))

        async def accident() -> None:
            await until(lambda: house.notes() == ["ending"])
            os.kill(worker, signal.SIGKILL)
            await until(lambda: house.serving().get("worker", worker) != worker)
            (house.folder / "go").touch()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(accident)
            await house.supervisor.stop([["gateway"], ["worker"]], grace=30)

    house = in_house(tmp_path, scene)
    assert [(name, returncode) for name, _, returncode in house.deaths] == [
        ("worker", -9),
        ("gateway", 0),
        ("worker", -15),
    ]


def test_stop_ends_a_child_that_waits_for_its_restart(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        await house.supervisor.start(house.child("worker", "notify_ready(); sys.exit(1)", backoff=ENDLESS))
        await until(lambda: [standing.state for standing in house.supervisor.standings()] == ["waiting"])
        await house.supervisor.stop(grace=20)
        assert house.supervisor.standings() == ()

    in_house(tmp_path, scene)


def test_cancelling_ends_every_child_in_order_all_the_same(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        with anyio.CancelScope() as scope:
            try:
                await house.supervisor.start(house.child("a", ON_TERM + SLEEP, ME="a"))
                await house.supervisor.start(house.child("b", ON_TERM + SLEEP, ME="b"))
                scope.cancel()
                await anyio.sleep_forever()
            finally:
                await house.supervisor.stop([["b"], ["a"]], grace=20)

    assert in_house(tmp_path, scene).notes() == ["b", "a"]


def test_a_cancelled_house_leaves_nobody(tmp_path: Path) -> None:
    """The whole of it is cancelled from outside, supervisor, watchers and all."""

    async def play() -> House:
        house = House(tmp_path)
        with anyio.CancelScope() as scope:
            async with house.supervisor:
                await house.supervisor.start(house.child("a", ON_TERM + SLEEP, ME="a"))
                await house.supervisor.start(house.child("b", SLEEP))
                pids = set(house.serving().values())
                scope.cancel()
                await anyio.sleep_forever()
        assert [pid for pid in pids if start_mark(pid) is not None] == []
        return house

    house = anyio.run(play)
    assert house.notes() == ["a"]
    assert house.supervisor.standings() == ()


def test_replace_puts_a_new_process_in_the_place_without_a_pause(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        child = house.child("worker", ON_TERM + SLEEP, ME="worker", backoff=ENDLESS)
        first = await house.supervisor.start(child)
        second = await house.supervisor.replace("worker")
        third = await house.supervisor.replace("worker", grace=20)
        assert house.serving() == {"worker": third}
        assert len({first, second, third}) == 3
        await until(lambda: len(house.deaths) == 2)
        assert house.deaths == [("worker", first, -9), ("worker", second, 0)]

    in_house(tmp_path, scene)


def test_replace_ends_the_pause_of_a_child_that_waits(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        first = await house.supervisor.start(house.child("worker", backoff=ENDLESS))
        os.kill(first, signal.SIGKILL)
        await until(lambda: [standing.state for standing in house.supervisor.standings()] == ["waiting"])
        second = await house.supervisor.replace("worker")
        assert house.serving() == {"worker": second}

    in_house(tmp_path, scene)


def test_replace_says_why_the_new_one_does_not_come_up_and_goes_on_trying(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        program = "if (here / 'broken').exists(): notify_failed('no such model'); sys.exit(1)\n" + SLEEP
        await house.supervisor.start(house.child("worker", program))
        (tmp_path / "broken").touch()
        with pytest.raises(ChildFailed, match="no such model"):
            await house.supervisor.replace("worker")
        (tmp_path / "broken").unlink()
        await until(house.serving)

    in_house(tmp_path, scene)


def test_end_takes_one_child_out_for_good(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        await house.supervisor.start(house.child("worker-1"))
        second = await house.supervisor.start(house.child("worker-2"))
        await house.supervisor.end("worker-1", grace=20)
        await house.supervisor.end("worker-1")
        assert house.serving() == {"worker-2": second}
        await house.supervisor.start(house.child("worker-1"))

    in_house(tmp_path, scene)


def test_what_a_dead_child_started_dies_with_it(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        program = "import subprocess; note(str(subprocess.Popen(['sleep', '3600']).pid))\n" + SLEEP
        pid = await house.supervisor.start(house.child("registry", program, restart=False))
        grandchild = int(house.notes()[0])
        assert start_mark(grandchild) is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: start_mark(grandchild) is None)

    in_house(tmp_path, scene)


def test_kill_ends_all_at_once(tmp_path: Path) -> None:
    async def scene(house: House) -> None:
        for name in ("a", "b"):
            await house.supervisor.start(house.child(name, "signal.signal(15, signal.SIG_IGN)\n" + SLEEP))
        house.supervisor.kill()
        await until(lambda: house.supervisor.standings() == ())

    assert [returncode for _, _, returncode in in_house(tmp_path, scene).deaths] == [-9, -9]


def test_a_large_log_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "worker.log"
    with log.open("wb") as file:
        file.truncate(17 * 2**20)
    (tmp_path / "logs").rename(tmp_path / "kept")

    async def scene(house: House) -> None:
        (tmp_path / "kept" / "worker.log").rename(log)
        await house.supervisor.start(house.child("worker", "print('new', flush=True)\n" + SLEEP))

    in_house(tmp_path, scene)
    assert log.read_text() == "new\n"
    assert log.with_name("worker.log.1").stat().st_size == 17 * 2**20


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "-x"])
def test_a_name_that_makes_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="child's name"):
        Child(name, ("true",))


def test_a_child_is_started_from_the_main_thread_alone(tmp_path: Path) -> None:
    """The death signal fires when the thread ends that started the child, which would kill a healthy worker."""
    refused: list[RuntimeError] = []

    def elsewhere() -> None:
        try:
            Life.begin(Child("worker", ("true",)), (), tmp_path / "worker.log")
        except RuntimeError as error:
            refused.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(refused) == 1

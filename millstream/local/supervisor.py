"""Starts children, notices at once when one dies, starts it again, and ends them all in order and in bounded time.

    start -> [a life: spawned -> ready -> ended] -> back-off -> [a life ...] -> ... -> stop

One task per child goes round this circle. A child that ends before it was ever ready is not tried again: the
person who started it is still there and is told why.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal

import anyio
import structlog
from anyio.abc import TaskGroup

from millstream.local.child import Child, ChildFailed
from millstream.local.life import Life, ending

OnDeath = Callable[[str, int, int], Awaitable[None]]
OnProgress = Callable[[str, str], None]
OnServing = Callable[[str, int], None]

# After SIGKILL only a process stuck in the kernel stays; nobody can wait that out.
_KILLED_WITHIN = 2.0
_ON_DEATH_WITHIN = 5.0
# The embedded server's keeper gives it 8 s before it kills it; killed itself, it could not.
_LASTING_GRACE = 10.0

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Standing:
    """How one child is doing, for `status`: `restarts` counts every life but the first."""

    name: str
    state: Literal["starting", "serving", "waiting"]
    pid: int | None
    restarts: int


@dataclass(slots=True)
class _Seat:
    """A child's place: it stays while lives come and go."""

    child: Child
    ready_within: float | None
    fds: tuple[int, ...]
    life: Life | None = None
    next_life: anyio.Event = field(default_factory=anyio.Event)
    lives: int = 0
    streak: int = 0
    proven: bool = False
    leaving: bool = False
    hurry: bool = False
    failure: ChildFailed | None = None
    wake: anyio.Event = field(default_factory=anyio.Event)
    first: anyio.Event = field(default_factory=anyio.Event)
    empty: anyio.Event = field(default_factory=anyio.Event)
    # Shielded: whatever else is cancelled, somebody reaps the child and sees its death.
    scope: anyio.CancelScope = field(default_factory=lambda: anyio.CancelScope(shield=True))

    def living(self) -> Life | None:
        return self.life if self.life is not None and not self.life.ended.is_set() else None

    def take(self, life: Life) -> None:
        self.life = life
        self.lives += 1
        self.next_life.set()
        self.next_life = anyio.Event()

    def goes_on(self) -> bool:
        return self.proven and not self.leaving and (self.child.restart or self.hurry)

    def leave(self) -> None:
        self.leaving = True
        self.wake.set()


class Supervisor:
    """The children of one process. Use it with `async with`, in the main thread; leaving the block ends them all.

    `fds` are inherited by every child that names none of its own. `on_death(name, pid, returncode)` is awaited
    beside the restart, for every process that ended, whoever ended it. `on_serving(name, pid)` is called whenever a
    process of a child has come up.
    """

    def __init__(
        self,
        logs: Path,
        *,
        fds: Sequence[int] = (),
        on_death: OnDeath | None = None,
        on_progress: OnProgress | None = None,
        on_serving: OnServing | None = None,
    ) -> None:
        self._logs = logs
        self._fds = tuple(fds)
        self._on_death = on_death
        self._on_progress = on_progress
        self._on_serving = on_serving
        self._seats: dict[str, _Seat] = {}
        self._tasks: TaskGroup

    async def __aenter__(self) -> Supervisor:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        await self.stop(grace=2.0)
        if isinstance(error, anyio.get_cancelled_exc_class()):
            return await self._tasks.__aexit__(kind, error, trace)
        # What failed inside the block, a child's start above all, leaves it as it is and in no exception group.
        await self._tasks.__aexit__(None, None, None)
        return None

    def standings(self) -> tuple[Standing, ...]:
        """Every child that was started and not ended for good, in the order of their start."""
        found = []
        for name, seat in self._seats.items():
            life = seat.living()
            state: Literal["starting", "serving", "waiting"] = "waiting"
            if life is not None:
                state = "serving" if life.ready else "starting"
            pid = life.process.pid if life is not None else None
            found.append(Standing(name, state, pid, max(0, seat.lives - 1)))
        return tuple(found)

    async def start(self, child: Child, *, ready_within: float | None = 30.0) -> int:
        """Start a child and wait until it says that it serves; its pid.

        `ready_within` is the longest silence in seconds: each progress line of the child starts it anew. None: the
        child does not speak, and serves once it was started. Raises ChildFailed, and then the child is gone for good.
        """
        if child.name in self._seats:
            raise ValueError(f"there is a child named {child.name} already")
        seat = _Seat(child, ready_within, self._fds if child.fds is None else child.fds)
        self._seats[child.name] = seat
        self._tasks.start_soon(self._occupy, seat, name=f"child {child.name}")
        await seat.first.wait()
        if seat.failure is not None:
            raise seat.failure
        if (life := seat.life) is None:
            raise ChildFailed(child.name, "it was stopped before it served", self._logs / f"{child.name}.log", ())
        return life.process.pid

    def revise(self, child: Child) -> None:
        """Run this from the next life of the child of that name on; the living one goes on as it is.

        Raises KeyError for an unknown name.
        """
        self._seats[child.name].child = child

    async def replace(self, name: str, *, grace: float = 0.0) -> int:
        """End one child and start it again without a pause; the new pid, once it serves.

        It gets its stop signal and `grace` seconds, then SIGKILL; with no grace SIGKILL at once.
        Raises KeyError for an unknown name, ChildFailed where the new one did not come up (it is tried again).
        """
        seat = self._seats[name]
        old, coming = seat.life, seat.next_life
        seat.hurry = True
        seat.wake.set()
        await self._end_life(seat, grace)
        await coming.wait()
        life = seat.life
        if life is None or life is old:
            raise ChildFailed(name, "it was stopped meanwhile", self._logs / f"{name}.log", ())
        await life.settled.wait()
        if life.failure:
            raise ChildFailed(name, life.failure, life.log.path, life.log.tail())
        return life.process.pid

    async def end(self, name: str, *, grace: float = 10.0) -> None:
        """End one child for good: its stop signal, `grace` seconds, SIGKILL. An unknown name has ended already."""
        if name in self._seats:
            await self._empty([self._seats[name]], grace)

    async def stop(self, order: Iterable[Iterable[str]] = (), *, grace: float = 10.0) -> None:
        """End the children group by group; each group has `grace` seconds after its stop signals, then SIGKILL.

        A group whose turn has not come is looked after as ever: the last of the work still needs it. Children in
        no group end together after the named ones, those that outlive their parent last of all; these have
        10 seconds at least. It takes at most (groups + 2) * (grace + 2) + 10 seconds, and goes on when cancelled.
        """
        groups = [[self._seats[name] for name in group if name in self._seats] for group in order]
        named = {seat.child.name for group in groups for seat in group}
        rest = [seat for name, seat in self._seats.items() if name not in named]
        groups.append([seat for seat in rest if seat.child.orphan_signal is not None])
        groups.append([seat for seat in rest if seat.child.orphan_signal is None])
        for group in groups:
            await self._empty(group, grace)

    def kill(self) -> None:
        """End everything now: SIGKILL, but for those that outlive their parent, which get their stop signal."""
        for seat in self._seats.values():
            seat.leave()
            if (life := seat.living()) is not None:
                lasting = seat.child.orphan_signal is None
                life.send(seat.child.stop_signal if lasting else signal.SIGKILL)

    async def _empty(self, seats: list[_Seat], grace: float) -> None:
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as ends:
                for seat in seats:
                    seat.leave()
                    ends.start_soon(self._end_seat, seat, grace)

    async def _end_seat(self, seat: _Seat, grace: float) -> None:
        await self._end_life(seat, grace if seat.child.orphan_signal is not None else max(grace, _LASTING_GRACE))
        with anyio.move_on_after(_KILLED_WITHIN):
            await seat.empty.wait()
        if not seat.empty.is_set():
            _log.error("child can't be killed", name=seat.child.name)
            seat.scope.cancel()

    async def _end_life(self, seat: _Seat, grace: float) -> None:
        life = seat.living()
        if life is None:
            return
        if grace > 0:
            life.send(seat.child.stop_signal)
            with anyio.move_on_after(grace):
                await life.ended.wait()
        if not life.ended.is_set():
            if grace > 0:
                _log.warning("child did not stop in time", name=seat.child.name, pid=life.process.pid, grace_s=grace)
            life.send(signal.SIGKILL)
            with anyio.move_on_after(_KILLED_WITHIN):
                await life.ended.wait()

    async def _occupy(self, seat: _Seat) -> None:
        name = seat.child.name
        try:
            with seat.scope:
                while not seat.leaving:
                    await self._one_life(seat)
                    if not seat.goes_on():
                        break
                    await self._pause(seat)
        finally:
            self._seats.pop(name, None)
            seat.empty.set()
            seat.first.set()
            seat.next_life.set()

    async def _pause(self, seat: _Seat) -> None:
        if not seat.hurry:
            delay = seat.child.backoff.delay(seat.streak)
            _log.info("child starts again", name=seat.child.name, in_s=delay)
            with anyio.move_on_after(delay):
                await seat.wake.wait()
        seat.hurry = False
        if not seat.leaving:
            seat.wake = anyio.Event()

    async def _one_life(self, seat: _Seat) -> None:
        child, path = seat.child, self._logs / f"{seat.child.name}.log"
        try:
            life = Life.begin(child, seat.fds, path)
        except OSError as error:
            # Out of processes, memory or disk: as good as a child that died at once.
            seat.streak = child.backoff.streak(seat.streak, 0.0)
            _log.error("child can't be started", name=child.name, error=str(error))
            if not seat.proven:
                seat.failure = ChildFailed(child.name, str(error), path, ())
            return
        seat.take(life)
        settled, progress = partial(self._settled, seat, life), partial(self._progress, child.name)
        lived = await life.run(seat.ready_within, settled, progress)
        seat.streak = child.backoff.streak(seat.streak, lived)
        if not seat.proven:
            seat.failure = ChildFailed(child.name, life.failure, path, life.log.tail())
        if life.silence:
            _log.error(
                "child hung and was ended", name=child.name, pid=life.process.pid, silent_s=round(life.silence, 1)
            )
        tell = _log.info if seat.leaving or seat.hurry else _log.warning
        tell("child ended", name=child.name, pid=life.process.pid, how=ending(life.returncode))
        if self._on_death is not None:
            self._tasks.start_soon(self._pass_on, self._on_death, child.name, life.process.pid, life.returncode)

    def _settled(self, seat: _Seat, life: Life) -> None:
        if life.ready:
            _log.info("child serves", name=seat.child.name, pid=life.process.pid)
            seat.proven = True
            seat.first.set()
            if self._on_serving is not None:
                self._on_serving(seat.child.name, life.process.pid)
        else:
            _log.error("child did not start", name=seat.child.name, pid=life.process.pid, reason=life.failure)

    def _progress(self, name: str, text: str) -> None:
        if self._on_progress is not None:
            self._on_progress(name, text)

    async def _pass_on(self, on_death: OnDeath, name: str, pid: int, returncode: int) -> None:
        # What is done about a death may fail or hang, say with Redis away; supervision goes on.
        try:
            with anyio.fail_after(_ON_DEATH_WITHIN):
                await on_death(name, pid, returncode)
        except Exception:  # noqa: BLE001  (whatever it is, it is logged and the children are looked after)
            _log.exception("what follows a death failed", name=name, pid=pid)

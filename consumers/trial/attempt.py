"""One attempt at a version: a process forked for it, watched until it answers, dies or is late, and what became of it.

Whatever it leaves behind is ended before the verdict is given.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn

from consumers.model.formats import said
from consumers.trial.confinement import Confinement, children, die_with_parent
from consumers.trial.trial import ANSWERING, LOADING, STARTING, try_version
from contract.trial import LENGTH, MAX_ANSWERS_BYTES, MAX_VERDICT_BYTES, TrialFile, Verdict, plain

SWEEP_S = 5.0
"""Longest time to end what a version left behind; then the warden itself ends, and everything with it."""
_POLL_S = 0.02
_KEPT = 2000
"""Bytes kept of what a version printed last."""
_STAGE, _VERDICT = b"s", b"v"


class Gone(Exception):
    """Whoever asked went away."""


class Attempt:
    """Runs once."""

    def __init__(self, limits: Confinement, line: socket.socket) -> None:
        self._limits = limits
        self._line = line
        """Who asked; a trial ends when they go away."""
        self._stage = STARTING
        self._said = bytearray()
        self._most = 0
        """Longest verdict and answers that are read."""
        self._printed = b""

    def run(
        self, signature: bytes, files: Sequence[TrialFile], contents: Mapping[str, bytes], rows: bytes = b""
    ) -> tuple[Verdict, bytes]:
        """The verdict, and its answers where there are rows. Raises Gone where nobody waits for it any more."""
        self._most = 2 * MAX_VERDICT_BYTES + (MAX_ANSWERS_BYTES if rows else 0)
        answers, answer = os.pipe()
        prints, print_to = os.pipe()
        pid = os.fork()
        if pid == 0:
            _become(self._limits, answer, print_to, signature, files, contents, rows)
        os.close(answer)
        os.close(print_to)
        os.set_blocking(answers, False)
        os.set_blocking(prints, False)
        try:
            status, peak = self._watch(pid, answers, prints)
        finally:
            _sweep()
            self._read(answers, prints)
            os.close(answers)
            os.close(prints)
        verdict, told = (self._late(), b"") if status is None else self._answered(status)
        return replace(verdict, peak_bytes=peak), told

    def _watch(self, pid: int, answers: int, prints: int) -> tuple[int | None, int]:
        """Until the process has ended: its status, None where its time ran out, and its peak of memory in bytes."""
        deadline = time.monotonic() + self._limits.seconds
        watched = [answers, prints, self._line.fileno()]
        ended, status = 0, 0
        is_late = False
        try:
            while not ended and not is_late:
                readable, _, _ = select.select(watched, [], [], _POLL_S)
                if self._line.fileno() in readable:  # nothing is asked before the answer, so this is the end
                    raise Gone
                for closed in self._read(answers, prints):
                    if closed in watched:
                        watched.remove(closed)
                ended, status, usage = os.wait4(pid, os.WNOHANG)
                is_late = not ended and time.monotonic() >= deadline
        finally:
            _end(pid, is_there=not ended)
            if not ended:
                _, status, usage = os.wait4(pid, 0)
        return None if is_late else status, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def _read(self, answers: int, prints: int) -> list[int]:
        """What the process wrote so far; the pipes that it has closed. What is too long to be a verdict is none."""
        ended = []
        for pipe in (answers, prints):
            with suppress(BlockingIOError):
                piece = os.read(pipe, 2**16)
                if not piece:
                    ended.append(pipe)
                elif pipe == prints:
                    self._printed = (self._printed + piece)[-_KEPT:]
                elif len(self._said) <= self._most:
                    self._said += piece
                while self._said.startswith(_STAGE) and b"\n" in self._said:
                    stage, _, self._said = self._said.partition(b"\n")
                    self._stage = plain(stage[1:].decode(errors="replace"))
        return ended

    def _late(self) -> Verdict:
        examples = "recorded requests" if self._stage == ANSWERING else "its examples"
        what = "loaded" if self._stage in (STARTING, LOADING) else f"done with {examples}"
        return Verdict(f"it was not {what} within {self._limits.seconds:g} s{self._last_words()}")

    def _answered(self, status: int) -> tuple[Verdict, bytes]:
        code = os.waitstatus_to_exitcode(status)
        start = 1 + LENGTH.size
        if code == 0 and self._said.startswith(_VERDICT) and start <= len(self._said) <= self._most:
            end = start + LENGTH.unpack(self._said[1:start])[0]
            with suppress(ValueError):
                return Verdict.decode(bytes(self._said[start:end])), bytes(self._said[end:])
        if code == -signal.SIGXCPU:
            how = f"took more than {self._limits.seconds:g} s of processor time"
        elif code < 0:
            how = f"ended by signal {-code} ({_signal_name(-code)})"
        else:
            how = f"ended its process with exit code {code}"
        return Verdict(f"it {how} {self._stage}{self._last_words()}"), b""

    def _last_words(self) -> str:
        lines = [line for raw in self._printed.decode(errors="replace").splitlines() if (line := plain(raw))]
        return f"; the last it printed was: {lines[-1][:200]}" if lines else ""


def _become(
    limits: Confinement,
    answer: int,
    print_to: int,
    signature: bytes,
    files: Sequence[TrialFile],
    contents: Mapping[str, bytes],
    rows: bytes,
) -> NoReturn:
    """In the child: confines itself, tries the version, answers and ends; nothing of the warden runs on here."""
    code = 1
    try:
        os.setsid()
        die_with_parent()
        nowhere = os.open(os.devnull, os.O_RDONLY)
        for fd, place in ((nowhere, 0), (print_to, 1), (print_to, 2)):
            os.dup2(fd, place)
        answer = os.dup2(answer, 3, inheritable=False)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        os.chdir("/")
        limits.enter()

        def on_stage(stage: str) -> None:
            os.write(answer, _STAGE + stage.encode() + b"\n")

        verdict, told = try_version(signature, files, contents, rows, on_stage=on_stage, memory=limits.memory_in_words)
        # In pieces: a pipe takes 64 KiB before somebody reads.
        left = memoryview(_VERDICT + verdict.encode() + told)
        while left:
            left = left[os.write(answer, left) :]
        code = 0
    except BaseException as error:  # noqa: BLE001 - nothing may go back into the warden's code
        sys.stderr.write(f"{said(error)}\n")
        sys.stderr.flush()
    finally:
        # Not by the usual way out: what a model registered for the end of its process is of no interest.
        os._exit(code)


def _end(pid: int, *, is_there: bool) -> None:
    """Kills all of the process's session, and itself where it has not been waited for."""
    for kill in (os.killpg, os.kill) if is_there else (os.killpg,):
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _sweep() -> None:
    """Ends what left the session: orphans of this process's children are its own."""
    deadline = time.monotonic() + SWEEP_S
    while left := children():
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in left:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        if time.monotonic() >= deadline:
            raise SystemExit("a version on trial goes on making processes")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"

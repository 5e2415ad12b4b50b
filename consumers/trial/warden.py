"""The warden: answers requests for trials, one at a time, each with a process forked for it alone.

registry -> socket -> warden, which never unpickles -> fork -> confined, nothing open but a pipe to answer on -> verdict

It is a fresh interpreter with one thread and the model libraries already imported, so a fork is safe and quick.
"""

from __future__ import annotations

import gc
import socket
from contextlib import suppress
from importlib import import_module

from consumers.model.formats.late_pandas import late_pandas
from consumers.trial.attempt import Attempt, Gone
from consumers.trial.confinement import Confinement, adopt_orphans, die_with_parent, hide
from consumers.worker.assembly import Assembly
from contract.trial import IDLE_S, LENGTH, MAX_ANSWERS_BYTES, MAX_HEADER_BYTES, TrialHeader, Verdict, in_words

SILENCE_S = 30.0
"""Longest wait for the next bytes of a request that has begun."""
_PIECE = 2**20
_USUAL = ("joblib", "sklearn.ensemble", "sklearn.linear_model", "sklearn.pipeline", "sklearn.preprocessing")
"""Imported before the first trial: it takes longer than most trials do."""


def main(arguments: list[str]) -> None:
    """`answer FD SECONDS BYTES` answers on that socket until it closes or is silent; `serve …` on all that connect."""
    how, fd, seconds, memory = arguments
    line = socket.socket(fileno=int(fd))
    line.setblocking(True)
    if how == "answer":
        die_with_parent()
    hide()
    adopt_orphans()
    for name in _USUAL:
        with late_pandas(), suppress(ImportError):
            import_module(name)
    gc.freeze()  # so that a child's collections do not copy what it shares with this process
    limits = Confinement(float(seconds), int(memory))
    if how == "answer":
        answer(line, limits, IDLE_S)
        return
    while True:
        connection, _ = line.accept()
        with connection:
            answer(connection, limits, SILENCE_S)


def answer(line: socket.socket, limits: Confinement, idle_s: float) -> None:
    """Answers until the other side closes, is silent for so long, or says something that is no request."""
    with suppress(Gone, ValueError, OSError):
        while True:
            line.settimeout(idle_s)
            first = receive(line, 1)
            line.settimeout(SILENCE_S)
            (length,) = LENGTH.unpack(first + receive(line, LENGTH.size - 1))
            if length > MAX_HEADER_BYTES:
                return
            header = TrialHeader.decode(receive(line, length))
            verdict, answers = _verdict(line, header, limits)
            line.sendall(verdict.encode())
            if header.rows_bytes:
                if len(answers) > MAX_ANSWERS_BYTES:  # of which nobody reads any
                    answers = b""
                line.sendall(LENGTH.pack(len(answers)) + answers)


def _verdict(line: socket.socket, header: TrialHeader, limits: Confinement) -> tuple[Verdict, bytes]:
    if header.total > limits.memory:
        left = header.total
        while left:  # to the end: the other side listens only then
            left -= len(receive(line, min(_PIECE, left)))
        why = f"its files have {in_words(header.total)}; a trial may take {limits.memory_in_words} of memory"
        return Verdict(why), b""
    signature = receive(line, header.signature_bytes)
    contents = {file.name: receive(line, file.size) for file in header.files}
    rows = receive(line, header.rows_bytes)
    return Attempt(limits, line).run(signature, header.files, contents, rows)


def receive(line: socket.socket, count: int) -> bytes:
    """So many bytes, in the one buffer they came into; raises Gone where the other side closed before."""
    assembly = Assembly(count)
    filled = 0
    with assembly.space() as space:
        while filled < count:
            with space[filled : filled + _PIECE] as piece:
                got = line.recv_into(piece)
            if not got:
                raise Gone
            filled += got
    return assembly.whole()

"""What a process and everything below it uses, from /proc (Linux)."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

RoleOf = Callable[[Sequence[str]], str]
"""What a process is for, by the words of its command line."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One living process; pid and `began` together are no other's, ever."""

    pid: int
    parent: int
    ticks: int
    """CPU of its own and of the children it has waited for, so that none is lost when a child ends."""
    began: int

    @classmethod
    def parse(cls, stat: str) -> Standing:
        """From /proc/<pid>/stat, whose second field may hold anything, brackets and spaces too."""
        pid, _, rest = stat.partition(" ")
        fields = rest.rpartition(")")[2].split()
        return cls(int(pid), int(fields[1]), sum(map(int, fields[11:15])), int(fields[19]))


@dataclass(frozen=True, slots=True)
class Memory:
    """Of a whole tree, in bytes. PSS shares a page that several processes map among them; RSS counts it each time."""

    rss: int
    pss: int


def everybody() -> list[Standing]:
    """All living processes."""
    found = []
    for folder in PROC.glob("[0-9]*"):
        try:
            found.append(Standing.parse((folder / "stat").read_text()))
        except OSError:  # It has ended meanwhile.
            continue
    return found


def below(root: int, standings: Iterable[Standing]) -> list[Standing]:
    """The root and its descendants, parents first; empty where the root has ended."""
    children: dict[int, list[Standing]] = defaultdict(list)
    found: list[Standing] = []
    for standing in standings:
        children[standing.parent].append(standing)
        if standing.pid == root:
            found.append(standing)
    for standing in found:  # It grows meanwhile.
        found.extend(children[standing.pid])
    return found


def cpu_s(root: int, role_of: RoleOf) -> Counter[str]:
    """CPU seconds of the tree so far, by role."""
    spent: Counter[str] = Counter()
    for standing in below(root, everybody()):
        spent[role_of(_words(standing.pid))] += standing.ticks
    return Counter({role: ticks / TICKS_PER_S for role, ticks in spent.items()})


def total(spent: Mapping[str, float]) -> float:
    return sum(spent.values())


def memory(root: int) -> Memory:
    """What the tree holds now."""
    rss = pss = 0
    for standing in below(root, everybody()):
        try:
            rollup = (PROC / str(standing.pid) / "smaps_rollup").read_text()
        except OSError:
            continue
        rss += _bytes(rollup, "Rss:")
        pss += _bytes(rollup, "Pss:")
    return Memory(rss, pss)


def machine_busy_s() -> float:
    """CPU seconds that all cores were not idle since boot; what other virtual machines stole counts as busy."""
    fields = (PROC / "stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_S


def _bytes(rollup: str, name: str) -> int:
    line = next((line for line in rollup.splitlines() if line.startswith(name)), "")
    return int(line.split()[1]) * 1024 if line else 0


def _words(pid: int) -> list[str]:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []

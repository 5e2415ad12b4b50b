"""Runtime records: what differs between what predicted then and what predicts here, as far as it can matter."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import orjson

MOST_THREADS = 256
_PLAIN = ("python", "numpy", "machine", "cpu", "system", "threads")
_BLAS = "BLAS"


def threads_of(record: str | bytes | None) -> int:
    """How many threads a model predicted with; 1 where no record says it."""
    threads = _read(record).get("threads", 1)
    return min(max(threads, 1), MOST_THREADS) if isinstance(threads, int) else 1


def differences(there: str | bytes | None, here: str | bytes, libraries: Collection[str]) -> tuple[str, ...]:
    """What differs between two runtime records, each in a few words; nothing where they are alike.

    Libraries count that both have, if they are among `libraries`: what one side alone has loaded computed nothing. For
    the same reason pools of threads count as alike where those of one side are among those of the other: which there
    are depends on what else a process has loaded.
    """
    then, now = _read(there), _read(here)
    if not then:
        return ("what predicted is not on record",)
    found = [_told(name, then.get(name), now.get(name)) for name in _PLAIN if then.get(name) != now.get(name)]
    old, new = _mapping(then.get("libraries")), _mapping(now.get("libraries"))
    for name in sorted(old.keys() & new.keys() & set(libraries)):
        if old[name] != new[name]:
            found.append(_told(name, old[name], new[name]))
    before, after = _pools(then.get("pools")), _pools(now.get("pools"))
    for name in sorted(before.keys() & after.keys()):
        if not (before[name] <= after[name] or after[name] <= before[name]):
            found.append(_told(name, ", ".join(sorted(before[name])), ", ".join(sorted(after[name]))))
    return tuple(found)


def _read(record: str | bytes | None) -> dict[str, Any]:
    try:
        content = orjson.loads(record) if record else {}
    except orjson.JSONDecodeError:
        content = {}
    return content if isinstance(content, dict) else {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _pools(value: Any) -> dict[str, set[str]]:
    """BLAS and OpenMP -> each library of that kind, its version and its threads."""
    pools: dict[str, set[str]] = {}
    for pool in value if isinstance(value, list) else ():
        if isinstance(pool, dict):
            library = str(pool.get("library"))
            kind = "OpenMP" if library == "openmp" else _BLAS
            words = (library, pool.get("version"), f"with {pool.get('threads')} threads")
            pools.setdefault(kind, set()).add(" ".join(str(word) for word in words if word))
    return pools


def _told(name: str, then: object, now: object) -> str:
    return f"{name}: {then if then is not None else 'unknown'} then, {now if now is not None else 'unknown'} here"

"""What predicted: the parts of this process that can change an answer's last bits."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import orjson
from threadpoolctl import threadpool_info

from consumers.model.formats import FORMATS


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime record; `runtime_id` is the first half of its SHA-256."""

    runtime_id: str
    body: bytes
    """JSON."""


def runtime(threads: int = 1) -> Runtime:
    """This process's own, once its model libraries are loaded; as it is while a model predicts with so many threads."""
    pools = [
        {
            "library": pool["internal_api"],
            "version": pool.get("version"),
            "threads": threads if threads > 1 else pool["num_threads"],
        }
        for pool in threadpool_info()
    ]
    body = orjson.dumps(
        {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "machine": platform.machine(),
            "cpu": _cpu(),
            "system": f"{platform.system()} {platform.libc_ver()[0]} {platform.libc_ver()[1]}",
            "libraries": _libraries(),
            "pools": sorted(pools, key=str),
            "threads": threads,
        },
        option=orjson.OPT_SORT_KEYS,
    )
    return Runtime(hashlib.sha256(body).hexdigest()[:32], body)


def _libraries() -> dict[str, str]:
    """Versions of the installed packages that models run in, whether or not one was loaded: none is imported here."""
    found = {}
    for name in {name for form in FORMATS.values() for name in form.distributions}:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        return platform.processor()

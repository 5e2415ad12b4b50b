"""The state directory: where one machine's Millstream keeps what must outlive it, and how to find a running one.

lock  running.json  events.duckdb  registry.duckdb  redis/  keys/  logs/  [redis.sock sink.sock registry.sock]
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from millstream.local.alive import start_mark


class StateDirError(Exception):
    """A state directory that can't be used; the message says why and what to do."""


class NotRunning(StateDirError):
    """No living `millstream up` owns the state directory."""


@dataclass(frozen=True, slots=True)
class Running:
    """What a running `millstream up` says of itself in running.json."""

    pid: int
    mark: str
    started_at: str
    addresses: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        return json.dumps(
            {"pid": self.pid, "mark": self.mark, "started_at": self.started_at, "addresses": dict(self.addresses)},
            indent=2,
        ).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Running:
        """Raises ValueError on anything but what encode wrote."""
        try:
            found = json.loads(raw)
            addresses = {str(name): str(value) for name, value in found["addresses"].items()}
            return cls(int(found["pid"]), str(found["mark"]), str(found["started_at"]), addresses)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a running.json: {error}") from None


@dataclass(frozen=True, slots=True)
class StateDir:
    """The places inside one state directory; nothing is touched before create()."""

    path: Path

    def __post_init__(self) -> None:
        # Children may run elsewhere, and the path goes into messages and socket addresses.
        object.__setattr__(self, "path", Path(os.path.abspath(self.path.expanduser())))  # noqa: PTH100

    @property
    def lock_file(self) -> Path:
        return self.path / "lock"

    @property
    def running_file(self) -> Path:
        return self.path / "running.json"

    @property
    def events(self) -> Path:
        return self.path / "events.duckdb"

    @property
    def registry(self) -> Path:
        return self.path / "registry.duckdb"

    @property
    def redis(self) -> Path:
        return self.path / "redis"

    @property
    def keys(self) -> Path:
        return self.path / "keys"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def create(self) -> StateDir:
        """Make what is missing, readable by its owner alone, and try a write. Raises StateDirError."""
        at = self.path
        try:
            at.mkdir(mode=0o700, parents=True, exist_ok=True)
            for at in (self.redis, self.keys, self.logs):
                at.mkdir(mode=0o700, exist_ok=True)
            at = self.path
            with tempfile.NamedTemporaryFile(dir=at, prefix=".try-") as trial:
                trial.write(b"x" * 4096)
                trial.flush()
                os.fsync(trial.fileno())
        except OSError as error:
            raise StateDirError(_cannot_write(at, error)) from None
        return self

    def running(self) -> Running | None:
        """The `up` that owns this directory, or None where none is alive."""
        with suppress(NotRunning):
            return self.require_running()
        return None

    def require_running(self) -> Running:
        """The `up` that owns this directory. Raises NotRunning with the reason and the remedy."""
        remedy = f"start it with `millstream up --state-dir {self.path}`"
        try:
            found = Running.decode(self.running_file.read_bytes())
        except FileNotFoundError:
            raise NotRunning(f"nothing is running in {self.path}; {remedy}") from None
        except OSError as error:
            raise NotRunning(f"{self.running_file} can't be read: {error.strerror}") from None
        except ValueError:
            raise NotRunning(f"{self.running_file} is not what `millstream up` writes; {remedy}") from None
        if start_mark(found.pid) != found.mark:
            raise NotRunning(f"the `millstream up` of {self.path} (pid {found.pid}) has ended; {remedy}")
        return found


def replace_file(path: Path, content: bytes) -> None:
    """Write all of a file or nothing of it, by rename, readable by its owner alone. Raises OSError."""
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _cannot_write(at: Path, error: OSError) -> str:
    other = "choose another with --state-dir"
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return f"the state directory {at} can't be written to by this user: give it to this user or {other}"
        case errno.EROFS:
            return f"the state directory {at} is on a read-only file system: {other}"
        case errno.ENOSPC | errno.EDQUOT:
            return f"there is no room left for the state directory {at}: free some or {other}"
        case errno.EEXIST | errno.ENOTDIR:
            return f"the state directory {at} needs to be a folder, and there is a file in its place: {other}"
        case _:
            return f"the state directory {at} can't be used ({error.strerror}): {other}"

"""`python -m millstream` is the command line; a child of `up` or of a pool goes straight to its role.

Its settings are all in its environment, so it does without the command line's parser, which would stay in its memory.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NoReturn


def main() -> None:
    """Never returns."""
    match sys.argv[1:]:
        case ["gateway" | "worker" | "sink" as role, "--state-dir", folder]:
            _run(role, folder)
        case ["registry", "run", "--state-dir", folder]:
            _run("registry", folder)
    from millstream.cli import main as command_line

    command_line()


def _run(role: str, state_dir: str) -> NoReturn:
    """Ends as the command of the same name would, with its exit codes and its messages."""
    if os.environ.get("MILLSTREAM_LOG_FORMAT") == "json":
        _log_without_colours()
    try:
        from contract.settings import Settings
        from millstream.local.allocator import preloaded

        settings = Settings.read(state_dir=Path(state_dir))
        if role != "registry":
            settings = preloaded(settings)
        from millstream.roles import ROLES

        ROLES[role](settings)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - explained to whoever reads the log
        from millstream.cli.errors import UNEXPECTED, explained

        message, code = explained(error)
        if message.startswith(UNEXPECTED):
            sys.excepthook(type(error), error, error.__traceback__)
        print(message, file=sys.stderr)
        sys.exit(code)
    sys.exit(0)


def _log_without_colours() -> None:
    """structlog imports rich and pygments where they are installed, to colour what is logged as JSON here."""
    modules: dict[str, Any] = sys.modules
    if "rich" in modules:
        return
    modules["rich"] = None  # as if it were not installed
    try:
        import structlog  # noqa: F401
    finally:
        del modules["rich"]


if __name__ == "__main__":
    main()

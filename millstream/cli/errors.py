"""How a command ends: its exit code, and one plain message instead of a traceback."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

OK, FALSE, USAGE, REFUSED, NOT_FOUND, UNAVAILABLE, DEADLINE = 0, 1, 2, 3, 4, 5, 6

UNEXPECTED = "unexpected"
_SERVERS = ("gateway", "worker", "sink", "registry")
"""Whose stderr is a log: there the whole trace of a fault is worth keeping."""


_CANNOT_RUN = (
    ("millstream.roles", "RoleFailed"),
    ("millstream.local.embedded_redis", "ServerMissing"),
    ("millstream.local.child", "ChildFailed"),
)
"""What says in a plain sentence why a process does not start."""


class CommandFailed(Exception):
    """A command that ends with a message for a person and an exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


class PlainErrors(TyperGroup):
    """The root of all commands; whatever one of them raises becomes a message and an exit code here."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, KeyboardInterrupt):
            raise
        except BrokenPipeError:
            # `| head` has seen enough; Python would complain once more when it flushes at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(OK) from None
        except Exception as error:
            if _of_typer(error):
                raise  # a usage error, which typer shows with the usage
            message, code = explained(error)
            if ctx.params.get("debug") or (ctx.invoked_subcommand in _SERVERS and message.startswith(UNEXPECTED)):
                traceback.print_exc()
            print(message, file=sys.stderr)
            raise typer.Exit(code) from None


def explained(error: Exception) -> tuple[str, int]:
    """What to tell a person, and the exit code."""
    # Looked up by what is loaded: a command that never spoke gRPC must not load it to fail.
    from ingest.answer import PredictionError

    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, CommandFailed):
        return error.message, error.exit_code
    grpc: Any = sys.modules.get("grpc")
    if grpc is not None and isinstance(error, grpc.RpcError):
        from millstream.calls import error_from_call

        error = error_from_call(error)
    if isinstance(error, PredictionError):
        return _prediction_error(error), _exit_code(error)
    settings: Any = sys.modules.get("contract.settings")
    if settings is not None and isinstance(error, settings.SettingsError):
        return str(error), USAGE
    state_dir: Any = sys.modules.get("millstream.local.state_dir")
    if state_dir is not None and isinstance(error, state_dir.StateDirError):
        return str(error), UNAVAILABLE if isinstance(error, state_dir.NotRunning) else REFUSED
    for module, name in _CANNOT_RUN:
        if module in sys.modules and isinstance(error, getattr(sys.modules[module], name)):
            return str(error), UNAVAILABLE
    return f"{UNEXPECTED} {type(error).__name__}: {error}; `millstream --debug …` shows where", FALSE


def _prediction_error(error: Any) -> str:
    lines = [error.message]
    if len(error.violations) > 1:
        lines = [f"refused, {len(error.violations)} things are wrong:"]
        lines += [f"  {violation.field}: {violation.description}" for violation in error.violations]
    if error.retry_after is not None:
        lines.append(f"try again in {error.retry_after:g} s")
    return "\n".join(lines)


def _exit_code(error: Any) -> int:
    from contract.errors import Code

    return {
        Code.INVALID_ARGUMENT: REFUSED,
        Code.ALREADY_EXISTS: REFUSED,
        Code.NOT_FOUND: NOT_FOUND,
        Code.RESOURCE_EXHAUSTED: UNAVAILABLE,
        Code.UNAVAILABLE: UNAVAILABLE,
        Code.CANCELLED: UNAVAILABLE,
        Code.DEADLINE_EXCEEDED: DEADLINE,
    }.get(type(error).code, FALSE)


def _of_typer(error: Exception) -> bool:
    return type(error).__module__.startswith(("typer.", "click."))

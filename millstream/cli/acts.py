"""registry promote, canary, shadow, rollback, retire, pin, unpin: what an operator says of a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from millstream.cli.errors import REFUSED, USAGE, CommandFailed
from millstream.cli.options import JsonOption, QuietOption, StateDirOption
from millstream.cli.registry_call import RegistryOption, ask_registry, whoami
from millstream.cli.screen import Screen

Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model.")]
Version = Annotated[str, typer.Argument(metavar="VERSION", help="One of its versions.")]
TIMEOUT_S = 30.0


def promote(
    model: Model,
    version: Version,
    despite_gate: Annotated[
        bool, typer.Option("--despite-gate", help="This once, whatever a replay of recorded requests says.")
    ] = False,
    state_dir: StateDirOption = None,
    registry: RegistryOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Put a version into production; one that was refused or held back is tried again.

    [bold]Examples[/bold]

      millstream registry promote churn 1.1.0
      millstream registry promote churn 1.1.0 --despite-gate
    """
    from protos import millstream_v1_pb2 as v1

    request = v1.PromoteRequest(model_id=model, version=version, by=whoami(), despite_gate=despite_gate)
    _act(Screen(as_json=as_json, quiet=quiet), state_dir, registry, "promote", lambda stub: stub.Promote, request)


def canary(
    model: Model,
    version: Version,
    percent: Annotated[
        float | None,
        typer.Option("--percent", metavar="P", help="Share of the requests that name no version, 0 to 100."),
    ] = None,
    abort_over: Annotated[
        str,
        typer.Option("--abort-over", metavar="RATE", help="Share becomes 0 above this rate of failures: 0.05 or 5%."),
    ] = "",
    off: Annotated[bool, typer.Option("--off", help="It is no canary any more.")] = False,
    state_dir: StateDirOption = None,
    registry: RegistryOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Give a version a share of the requests, or change it; whoever is among them stays among them as it grows.

    [bold]Examples[/bold]

      millstream registry canary churn 1.1.0 --percent 5 --abort-over 2%
      millstream registry canary churn 1.1.0 --off
    """
    from protos import millstream_v1_pb2 as v1

    if off == (percent is not None):
        raise CommandFailed("expected --percent P, or --off", USAGE)
    request = v1.SetCanaryRequest(
        model_id=model, version=version, by=whoami(), percent=percent or 0.0, abort_over=_rate(abort_over), off=off
    )
    _act(Screen(as_json=as_json, quiet=quiet), state_dir, registry, "canary", lambda stub: stub.SetCanary, request)


def shadow(
    model: Model,
    version: Version,
    off: Annotated[bool, typer.Option("--off", help="It is no shadow any more.")] = False,
    state_dir: StateDirOption = None,
    registry: RegistryOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Have the workers compute copies of requests with a version too, when they are idle; it answers nobody.

    [bold]Example[/bold]

      millstream registry shadow churn 1.1.0
    """
    from protos import millstream_v1_pb2 as v1

    request = v1.SetShadowRequest(model_id=model, version=version, by=whoami(), off=off)
    _act(Screen(as_json=as_json, quiet=quiet), state_dir, registry, "shadow", lambda stub: stub.SetShadow, request)


def rollback(
    model: Model,
    state_dir: StateDirOption = None,
    registry: RegistryOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Go back to the version that answered before; once more, and it goes further back.

    [bold]Example[/bold]

      millstream registry rollback churn
    """
    from protos import millstream_v1_pb2 as v1

    request = v1.RollbackRequest(model_id=model, by=whoami())
    _act(Screen(as_json=as_json, quiet=quiet), state_dir, registry, "rollback", lambda stub: stub.Rollback, request)


def retire(
    model: Model,
    version: Version,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Even where it answers now.")] = False,
    state_dir: StateDirOption = None,
    registry: RegistryOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Take a version out of service, whatever its tag says; what answers now only with --yes.

    [bold]Example[/bold]

      millstream registry retire churn 1.0.0
    """
    from protos import millstream_v1_pb2 as v1

    request = v1.RetireRequest(model_id=model, version=version, by=whoami(), force=yes)
    _act(Screen(as_json=as_json, quiet=quiet), state_dir, registry, "retire", lambda stub: stub.Retire, request)


def pin(
    model: Model,
    version: Annotated[str, typer.Argument(metavar="[VERSION]", help="Without it, the one in production.")] = "",
    state_dir: StateDirOption = None,
    registry: RegistryOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Hold production where it is: tags that come later count for nothing until `unpin`.

    [bold]Example[/bold]

      millstream registry pin churn
    """
    from protos import millstream_v1_pb2 as v1

    request = v1.PinRequest(model_id=model, version=version, by=whoami())
    _act(Screen(as_json=as_json, quiet=quiet), state_dir, registry, "pin", lambda stub: stub.Pin, request)


def unpin(
    model: Model,
    state_dir: StateDirOption = None,
    registry: RegistryOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Let the tags count again that came since the pin.

    [bold]Example[/bold]

      millstream registry unpin churn
    """
    from protos import millstream_v1_pb2 as v1

    request = v1.UnpinRequest(model_id=model, by=whoami())
    _act(Screen(as_json=as_json, quiet=quiet), state_dir, registry, "unpin", lambda stub: stub.Unpin, request)


def gate(
    model: Model,
    policy: Annotated[
        str,
        typer.Option("--policy", metavar="POLICY", help="off, warn, or block: what changes too much is held back."),
    ] = "",
    rows: Annotated[
        int | None, typer.Option("--rows", metavar="N", help="Most recorded answers to compare, 1 to 10000.")
    ] = None,
    changed: Annotated[
        str, typer.Option("--changed", metavar="SHARE", help="How many of them may change: 0.05 or 5%.")
    ] = "",
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", metavar="T", help="A number is another from a difference of T + T x itself on."),
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Go by the registry's defaults again.")] = False,
    state_dir: StateDirOption = None,
    registry: RegistryOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show or set what a version is put to before it takes over: recorded requests, and how many answers may change.

    [bold]Examples[/bold]

      millstream registry gate churn
      millstream registry gate churn --policy block --rows 1000 --changed 5%
    """
    from protos import millstream_v1_pb2 as v1

    share = _rate(changed, "--changed", may_be_0=True) if changed else None
    if rows is not None and rows < 0:
        raise CommandFailed(f"--rows: expected a number from 1 to 10000, got {rows}", USAGE)
    request = v1.GateRequest(
        model_id=model, by=whoami(), policy=policy or None, rows=rows, changed=share, tolerance=tolerance, reset=reset
    )
    screen = Screen(as_json=as_json, quiet=quiet)
    told = ask_registry(state_dir, registry, _refusable(lambda stub: stub.Gate, request))
    if as_json:
        names = ("model_id", "policy", "rows", "changed", "tolerance", "is_own", "detail", "hindrance")
        screen.line({name: getattr(told, name) for name in names})
        return
    screen.text(f"gate {told.model_id}: {told.detail}")
    screen.note("its own terms" if told.is_own else "the registry's defaults: MILLSTREAM_GATE_POLICY and the like")
    if told.hindrance:
        screen.note(f"nothing can be replayed: {told.hindrance}")


def _act(
    screen: Screen, state_dir: Path | None, registry: str, act: str, call: Callable[[Any], Any], request: Any
) -> None:
    done = ask_registry(state_dir, registry, _refusable(call, request))
    if screen.as_json:
        screen.line(
            {
                "act": act,
                "model_id": done.model_id,
                "version": done.version,
                "digest": done.digest,
                "detail": done.detail,
                "by": request.by,
            }
        )
        return
    screen.text(f"{act} {done.model_id} {done.version}: {done.detail}")
    screen.note(f"`millstream registry show {done.model_id}` shows how far it is")


def _refusable(call: Callable[[Any], Any], request: Any) -> Callable[[Any], Any]:
    """A call to a stub that ends with code 3 where the registry refuses what was asked."""
    import grpc

    def ask(stub: Any) -> Any:
        try:
            return call(stub)(request, timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            refused: Any = error
            if refused.code() != grpc.StatusCode.FAILED_PRECONDITION:
                raise
            raise CommandFailed(refused.details(), REFUSED) from None

    return ask


def _rate(text: str, option: str = "--abort-over", *, may_be_0: bool = False) -> float:
    """A share from 0 to 1: `0.05` or `5%`; 0 only where it may be that."""
    if not text:
        return 0.0
    try:
        rate = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        rate = math.nan
    if not 0 <= rate <= 1 or (rate == 0 and not may_be_0):
        above = "above 0 and" if not may_be_0 else "from 0"
        raise CommandFailed(f"{option}: expected a rate {above} up to 1, such as 0.05 or 5%, got {text!r}", USAGE)
    return rate

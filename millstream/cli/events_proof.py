"""events verify, heads, erase: what proves the log, and what empties it for good."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from millstream.cli.errors import FALSE, NOT_FOUND, REFUSED, UNAVAILABLE, USAGE, CommandFailed
from millstream.cli.log_place import EventLogOption, open_log
from millstream.cli.options import JsonOption, QuietOption, StateDirOption
from millstream.cli.place import DEFAULT_STATE_DIR, EVENT_LOG, Place, called
from millstream.cli.screen import Screen, some

if TYPE_CHECKING:
    from consumers.audit.findings import Finding, Verified
    from consumers.audit.heads import Head
    from contract.settings import Settings

_WHERE = "Where"
ModelArgument = Annotated[str, typer.Argument(metavar="[MODEL]", help="This model alone.", show_default=False)]
HeadsOption = Annotated[
    str,
    typer.Option(
        "--heads",
        metavar="URL|DIR",
        help="Where signed heads are kept: a folder, or azure://container/prefix (default: heads_url, or the state "
        "directory).",
        rich_help_panel=_WHERE,
    ),
]


def verify(
    model: ModelArgument = "",
    offline: Annotated[
        bool, typer.Option("--offline", help="Without heads: what was computed anew or cut off is not found.")
    ] = False,
    heads: HeadsOption = "",
    key: Annotated[
        Path | None,
        typer.Option(
            "--key",
            metavar="FILE",
            help="Public key that heads are signed with (default: keys/sink.pub of the state directory).",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    state_dir: StateDirOption = None,
    event_log: EventLogOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Prove that the event log is what was recorded: its chain from every column, its files, its signed heads.

    Ends with 1 where anything is not as it was recorded, and says what. Works
    while the sink runs, and on the state directory while none does.

    [bold]Examples[/bold]

      millstream events verify
      millstream events verify churn --heads azure://heads --key sink.pub
      millstream events verify --offline
    """
    from consumers.audit.verify import rows_of
    from consumers.audit.verify import verify as verified

    if offline and (heads or key):
        raise CommandFailed("--offline reads no heads: expected it without --heads and --key", USAGE)
    screen = Screen(as_json=as_json, quiet=quiet)
    # Before the log is read: whatever is signed by now has to be in it.
    kept = Kept() if offline else _kept(screen, state_dir, heads, key, model)
    sound, read_us = True, time.time_ns() // 1000
    with open_log(Place.of(state_dir, event_log=event_log), screen, model) as files:
        with tempfile.TemporaryDirectory(prefix="millstream-verify-") as folder, _rows(screen) as (start, advance):
            start(rows_of(files, model))
            told: list[Verified] = []
            for found in verified(
                files, kept.heads, model_id=model, temporary=folder, read_us=read_us, on_rows=advance
            ):
                found.findings[:0] = kept.bad.pop(found.model_id, [])
                told.append(found)
        for found in told:
            sound = sound and found.sound
            _show(screen, found, offline=offline, kept=kept)
    for model_id, findings in sorted(kept.bad.items()):
        sound = False
        _tell(screen, model_id, findings)
    if not told:
        screen.note("the event log is empty")
    if offline:
        screen.note(
            "without heads: a chain that somebody computed anew, or events that were cut off at the end, can't be "
            "found this way"
        )
    elif kept.heads is None or not kept.heads:
        screen.note(
            f"no heads are in {kept.place}: a chain that somebody computed anew, or events that were cut off at the "
            "end, can't be found; name where they are with --heads"
        )
    if not sound:
        raise typer.Exit(FALSE)


def heads(
    model: ModelArgument = "",
    every: Annotated[bool, typer.Option("--all", help="All of them, oldest first, instead of the newest.")] = False,
    heads: HeadsOption = "",
    state_dir: StateDirOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Print the newest signed head of each model, for keeping where nobody can change it: on paper, in a mail.

    [bold]Example[/bold]

      millstream events heads churn
    """
    screen = Screen(as_json=as_json, quiet=quiet)
    settings = _settings(state_dir)
    place = _heads_place(settings, state_dir, heads)
    found = 0

    def take(name: str, raw: bytes) -> None:
        nonlocal found
        found += 1
        if as_json:
            import orjson

            try:
                document = orjson.loads(raw)
            except ValueError:
                document = None
            screen.line({"name": name, "document": document})
        else:
            screen.text(raw.decode("utf-8", "replace").rstrip())

    _read_heads(settings, place, take, model_id=model, newest=not every)
    if not found:
        what = f"a model {model!r}" if model else "any model"
        raise CommandFailed(f"no head of {what} is in {place}", NOT_FOUND)
    screen.note(f"{some(found, 'head')} from {place}")


def erase(
    entity: Annotated[
        str, typer.Option("--entity", metavar="ID", help="The entity whose events are emptied.", show_default=False)
    ],
    reason: Annotated[
        str,
        typer.Option("--reason", metavar="TEXT", help="Why, for the record; it names nobody.", show_default=False),
    ],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="Of this model alone.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Without asking.")] = False,
    state_dir: StateDirOption = None,
    event_log: EventLogOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Empty the events of an entity for good; that they were there, and what their digest was, stays provable.

    Requests that still wait, or come later, are not erased.

    [bold]Example[/bold]

      millstream events erase --entity 101 --reason "request of 2026-02-01"
    """
    from protos import millstream_v1_pb2 as v1
    from protos import millstream_v1_pb2_grpc as v1_grpc

    screen = Screen(as_json=as_json, quiet=quiet)
    for name, text in (("--entity", entity), ("--reason", reason)):
        if not text.strip():
            raise CommandFailed(f"{name}: expected a text, got none", USAGE)
    place = Place.of(state_dir, event_log=event_log)
    address = place.address(EVENT_LOG)
    with place.channel(EVENT_LOG) as channel:
        stub: Any = v1_grpc.EventLogStub(channel)
        asked = v1.EventQuery(entity_id=entity, model_id=model, replay="*")
        counted = called(EVENT_LOG, address, lambda: stub.Count(asked, timeout=300))
        of_model = f" of {model}" if model else ""
        if not counted.events:
            raise CommandFailed(f"the event log has no events{of_model} about that entity", NOT_FOUND)
        if not yes:
            _ask(f"{some(counted.events, 'event')}{of_model} will be emptied for good. Erase them?")
        request = v1.EraseRequest(entity_id=entity, model_id=model, reason=reason)
        erased = called(EVENT_LOG, address, lambda: stub.Erase(request, timeout=24 * 3600))
    if as_json:
        screen.line({"events": erased.events, "segments": erased.segments})
    else:
        screen.text(f"erased {some(erased.events, 'event')}; segments that were written anew: {erased.segments}")
    screen.note(
        "not erased: what still waits in Redis or comes later, replies until they expire, logs, backups, and copies of "
        "segments that were made elsewhere before"
    )


def _ask(question: str) -> None:
    if not sys.stdin.isatty():
        raise CommandFailed(f"{question} Nobody can answer here: repeat it with --yes", USAGE)
    if not typer.confirm(question, err=True):
        raise CommandFailed("nothing was erased", FALSE)


# ---------------------------------------------------------------- heads


@dataclass(slots=True)
class Kept:
    """The heads that were found, and what is wrong with the others."""

    heads: list[Head] | None = None
    bad: dict[str, list[Finding]] = field(default_factory=dict)
    place: str = ""


def _kept(screen: Screen, state_dir: Path | None, heads: str, key: Path | None, model: str) -> Kept:
    from consumers.audit.findings import Finding
    from consumers.audit.heads import ForgedHead, Head, MalformedHead, model_of
    from contract.trust import KeyUnusable, public_key

    settings = _settings(state_dir)
    kept = Kept([], place=_heads_place(settings, state_dir, heads))
    own = (settings.heads_key or _keys(state_dir) / "sink.key").with_suffix(".pub")
    signer: list[Any] = []

    def take(name: str, raw: bytes) -> None:
        if not signer:
            signer.append(public_key(key or own))
        model_id = model_of(name) or ""
        try:
            head = Head.decode(raw, signer[0])
            if not name.endswith(head.name.removeprefix("heads/")):
                raise ForgedHead(f"it is the head {head.name}")
        except (MalformedHead, ForgedHead) as error:
            finding = Finding(model_id, "head", f"the head {name} is not good: {error}", file=name)
            kept.bad.setdefault(model_id, []).append(finding)
        else:
            assert kept.heads is not None
            kept.heads.append(head)

    try:
        with _bar(screen, "reading heads") as move:
            _read_heads(settings, kept.place, take, model_id=model, progress=move, absent_is_empty=not heads)
    except KeyUnusable as error:
        raise CommandFailed(
            f"{error}; name the public key of the sink with --key, or do without: --offline", REFUSED
        ) from None
    return kept


def _read_heads(
    settings: Settings, place: str, take: Callable[[str, bytes], None], *, absent_is_empty: bool = True, **how: Any
) -> None:
    from millstream.keeping import kept_heads
    from registry.blobs import ContainerMissing, StoreError, StoreUnavailable, StoreUrlError

    try:
        kept_heads(settings, place, take, **how)
    except ContainerMissing as error:
        if not absent_is_empty:
            raise CommandFailed(str(error), NOT_FOUND) from None
    except StoreUrlError as error:
        raise CommandFailed(f"--heads: {error}", USAGE) from None
    except StoreError as error:
        raise CommandFailed(str(error), UNAVAILABLE if isinstance(error, StoreUnavailable) else REFUSED) from None


def _settings(state_dir: Path | None) -> Settings:
    from millstream.cli.roles import settings_of

    return settings_of(state_dir=state_dir)


def _heads_place(settings: Settings, state_dir: Path | None, heads: str) -> str:
    return heads or settings.heads_url or str((state_dir or DEFAULT_STATE_DIR).absolute())


def _keys(state_dir: Path | None) -> Path:
    return (state_dir or DEFAULT_STATE_DIR).absolute() / "keys"


# ---------------------------------------------------------------- showing


def _show(screen: Screen, found: Verified, *, offline: bool, kept: Kept) -> None:
    from consumers.audit.vouching import moment

    if screen.as_json:
        screen.line({**asdict(found), "sound": found.sound})
        return
    what = f"{some(found.events, 'event')}, {some(found.segments, 'segment')}, up to event {found.number}"
    if found.sound:
        screen.text(f"{found.model_id}: {what}: as they were recorded")
    else:
        findings = some(len(found.findings) + found.more, "finding")
        screen.text(f"{found.model_id}: {what}: NOT as they were recorded, {findings}")
    for finding in found.findings:
        screen.text(f"  {finding.text}")
    if found.more:
        screen.text(f"  and {found.more} more")
    for text in (*found.erasures, *found.notes):
        screen.text(f"  {text}")
    if not offline and found.heads:
        rest = found.number - found.vouched_number
        behind = f"; {some(rest, 'event')} after it without a head yet" if rest > 0 else ""
        screen.text(
            f"  signed heads that agree: {found.heads}, the newest of {moment(found.vouched_us)} up to event "
            f"{found.vouched_number}{behind}"
        )
    elif not offline and kept.heads:
        screen.text("  no signed head agrees with it")
    if found.heads_unchecked:
        screen.text(f"  heads of events that retention removed or that can't be read: {found.heads_unchecked}")


def _tell(screen: Screen, model_id: str, findings: list[Finding]) -> None:
    """Of a model that the log has nothing of."""
    for finding in findings:
        if screen.as_json:
            screen.line({"model_id": model_id, "findings": [asdict(finding)], "sound": False})
        else:
            screen.text(f"{model_id}: {finding.text}")


@contextmanager
def _rows(screen: Screen) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """A bar on a terminal: told how many rows there are, and then how many more were verified."""
    total, done = 0, 0
    with _bar(screen, "verifying") as move:

        def start(rows: int) -> None:
            nonlocal total
            total = rows

        def advance(rows: int) -> None:
            nonlocal done
            done += rows
            move(done, total)

        yield start, advance


@contextmanager
def _bar(screen: Screen, what: str) -> Iterator[Callable[[int, int], None]]:
    if not screen.watched:
        yield lambda _done, _all: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)

"""produce: a file of requests onto a model's bulk lane."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from millstream.cli.errors import FALSE, NOT_FOUND, REFUSED, UNAVAILABLE, USAGE, CommandFailed
from millstream.cli.options import AddressOption, JsonOption, PrefixOption, QuietOption, RedisOption, StateDirOption
from millstream.cli.place import GATEWAY, REDIS, Place
from millstream.cli.screen import Screen

if TYPE_CHECKING:
    from contract.admission import Admission
    from ingest.bulk_file import BulkFile, Line
    from ingest.bulk_progress import Progress
    from ingest.bulk_run import BulkRun

INTERRUPTED = 130
MOST_SHOWN = 50
_ANSWERS = "Answers"


def produce(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model to ask.")],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="CSV with a header, JSON lines, or Parquet.", dir_okay=False)
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an interrupted run of this file stopped.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out lines that are no requests, and name them at the end.")
    ] = False,
    check: Annotated[
        int, typer.Option("--check", metavar="N", min=0, help="Lines looked at before anything is sent.")
    ] = 1000,
    discard_reply: Annotated[
        bool,
        typer.Option(
            "--discard-reply",
            help="Keep no replies, which take memory for an hour: only the event log has the answers. "
            "A line that is sent again is then predicted again.",
            rich_help_panel=_ANSWERS,
        ),
    ] = False,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Wait until all of it is answered, and count.", rich_help_panel=_ANSWERS),
    ] = False,
    results: Annotated[
        Path | None,
        typer.Option(
            "--results",
            metavar="OUT.jsonl",
            help="Wait, and write each answer as a JSON line, in the file's order.",
            dir_okay=False,
            rich_help_panel=_ANSWERS,
        ),
    ] = None,
    most_waiting: Annotated[
        int, typer.Option("--max-waiting", metavar="N", min=1, help="Send no faster than the lane stays this short.")
    ] = 100_000,
    prefix: PrefixOption = "ms",
    state_dir: StateDirOption = None,
    address: AddressOption = "",
    redis_url: RedisOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Send a file of requests to a model's bulk lane.

    The columns are the model's features; request_id and entity_id may stand beside them. A JSON line is a whole
    request. A line's id is made from the file's content and the line's number, so a line that is sent again is
    predicted and recorded once, for as long as its reply is kept (an hour once answered).

    [bold]Examples[/bold]

      millstream produce churn people.csv
      millstream produce churn people.csv --resume
      millstream produce churn people.parquet --results answers.jsonl
    """
    from contract.errors import Refused
    from ingest.bulk_file import BulkFile
    from ingest.bulk_progress import Progress, ProgressUnusable
    from ingest.bulk_rows import BulkFileUnusable
    from ingest.bulk_run import BadLines, BulkRun, Stopped, open_results
    from ingest.producer import Producer

    if discard_reply and results:
        raise CommandFailed("--results needs the replies that --discard-reply does not keep", USAGE)
    screen = Screen(as_json=as_json, quiet=quiet)
    place = Place.of(state_dir, gateway=address, redis=redis_url)
    with ExitStack() as stack:
        producer = stack.enter_context(Producer(place.address(REDIS), prefix, patience=60.0))
        producer.check_model(model, patience=0.0)  # a wrong address is told at once
        try:
            admissions = _admissions(place, model, prefix)
            source = stack.enter_context(BulkFile(file, model, admissions, discard_reply=discard_reply))
            progress = Progress.read(file, source.digest, model) if resume else None
        except (BulkFileUnusable, ProgressUnusable) as error:
            raise CommandFailed(str(error), REFUSED) from None
        except Refused as error:
            raise CommandFailed(error.message, UNAVAILABLE) from None
        if resume:
            went = f"going on after line {progress.appended_to:,}" if progress else "nothing to resume: from the start"
            screen.note(f"{file}: {went}")
        progress = progress or Progress(source.digest, model)
        bad: list[Line] = []
        with _results(results, progress, open_results) as out, _bars(screen, source, progress, wait) as show:
            run = BulkRun(
                producer,
                source,
                progress,
                collect=wait or results is not None,
                results=out,
                replies=not discard_reply,
                skip_bad=skip_bad,
                on_bad=lambda line: bad.append(line) if len(bad) < MOST_SHOWN else None,
                on_progress=show,
                most_waiting=most_waiting,
            )
            try:
                run.check(check)
                with _stopping(run):
                    run.run()
            except (Stopped, KeyboardInterrupt):
                raise _interrupted(run, file, model) from None
            except BadLines as error:
                if progress.appended_to:
                    run.save()
                raise CommandFailed(_told_bad(file, error.lines, progress), REFUSED) from None
            except OSError as error:
                run.save()
                raise CommandFailed(f"{error.filename or file}: {error.strerror or error}", REFUSED) from None
            except Exception:
                run.save()
                screen.note(f"stopped after line {progress.appended_to:,}; --resume goes on there")
                raise
    _report(screen, file, progress, bad, waited=wait or results is not None)
    if progress.failed or progress.lost:
        raise typer.Exit(FALSE)


def _admissions(place: Place, model_id: str, prefix: str) -> Callable[[str], Admission]:
    """What requests are checked against, by version: from the gateway, or without one from the model's record."""
    from contract.admission import Admission
    from contract.signature import parse_signature
    from ingest.answer import Unavailable

    @functools.cache
    def admission(version: str) -> Admission:
        if place.knows(GATEWAY):
            try:
                with place.client() as client:
                    return Admission(parse_signature(client.model(model_id, version).signature_json.encode())[0])
            except Unavailable:
                if not place.knows(REDIS):
                    raise
        return _recorded(place, model_id, version, prefix)

    def of(version: str) -> Admission:
        from contract.errors import Reason, Refused
        from ingest.answer import NotFound

        try:
            return admission(version)
        except NotFound as error:
            if not version:
                raise
            raise Refused(Reason.VERSION_UNKNOWN, error.message) from None

    return of


def _recorded(place: Place, model_id: str, version: str, prefix: str) -> Admission:
    from google.protobuf.message import DecodeError
    from redis.exceptions import RedisError

    from contract.connection import connect
    from contract.keys import Keys
    from contract.record import ModelRecord, route
    from contract.signature import SignatureError
    from protos import millstream_wire_v1_pb2 as wire

    try:
        with connect(place.address(REDIS)) as client:
            raw: Any = client.hget(Keys(prefix).catalog, model_id)
    except (RedisError, OSError) as error:
        raise CommandFailed(f"the record of {model_id} can't be read from Redis: {error}", UNAVAILABLE) from None
    if raw is None:
        raise CommandFailed(f"there is no model {model_id!r}", NOT_FOUND)
    try:
        # Nothing is loaded by this record, it only says how text is read; so its seal need not be checked.
        record = ModelRecord.decode(wire.SignedRecord.FromString(raw).record)
    except (DecodeError, SignatureError) as error:
        raise CommandFailed(f"the record of {model_id} in Redis can't be read: {error}", UNAVAILABLE) from None
    return route(record, version or (record.live.version if record.live else ""), "", "").admission


@contextmanager
def _results(path: Path | None, progress: Progress, open_results: Any) -> Iterator[Any]:
    if path is None:
        yield None
        return
    try:
        out = open_results(path, progress)
    except OSError as error:
        raise CommandFailed(f"{path} can't be written: {error.strerror}", REFUSED) from None
    with out:
        yield out


@contextmanager
def _stopping(run: BulkRun) -> Iterator[None]:
    """Ctrl-C ends the run between two steps; once more ends it at once."""

    def stop(_number: int, _frame: object) -> None:
        run.stopping = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupted(run: BulkRun, file: Path, model: str) -> typer.Exit:
    with suppress(KeyboardInterrupt):
        run.save()
    told = f"interrupted after line {run.progress.appended_to:,}"
    if run.saves:
        told += f"; go on with: millstream produce {model} {file} --resume"
    else:
        told += f"; nothing could be written beside {file}, so a new run begins at its start and adds nothing twice"
    print(told, file=sys.stderr)
    return typer.Exit(INTERRUPTED)


def _told_bad(file: Path, lines: list[Line], progress: Progress) -> str:
    told = [f"{file}, line {line.number}: {problem}" for line in lines for problem in line.problems]
    more = [f"… and {len(told) - MOST_SHOWN:,} more"] if len(told) > MOST_SHOWN else []
    sent = f"lines up to {progress.appended_to:,} were sent" if progress.appended_to else "nothing was sent"
    return "\n".join([*told[:MOST_SHOWN], *more, f"{sent}; correct the file, or leave such lines out with --skip-bad"])


def _report(screen: Screen, file: Path, progress: Progress, bad: list[Line], *, waited: bool) -> None:
    for line in bad:
        screen.note(f"{file}, line {line.number}: {'; '.join(line.problems)}")
    if progress.skipped > len(bad):
        screen.note(f"… and {progress.skipped - len(bad):,} more lines were left out")
    if screen.as_json:
        told: dict[str, Any] = {
            "model_id": progress.model_id,
            "requests": progress.appended,
            "skipped": progress.skipped,
        }
        if waited:
            told |= {"answered": progress.answered, "failed": dict(progress.failed), "lost": progress.lost}
        screen.line(told)
        return
    skipped = f", {progress.skipped:,} lines left out" if progress.skipped else ""
    screen.text(f"{progress.model_id}: {progress.appended:,} requests sent{skipped}")
    if not waited:
        screen.note("they are answered as workers get to them: `millstream status` shows the backlog")
        return
    screen.text(f"{progress.answered:,} answered, {progress.failed.total():,} failed")
    for reason, count in sorted(progress.failed.items()):
        screen.text(f"  {reason}: {count:,}")
    if progress.lost:
        screen.text(f"  {progress.lost:,} replies had expired before they were read; the event log has them")


@contextmanager
def _bars(screen: Screen, file: BulkFile, progress: Progress, waits: bool) -> Iterator[Callable[[], None]]:
    """Bars on stderr for what was sent and what is answered; none where nobody would see them."""
    if not screen.watched:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns: tuple[Any, ...] = (
        TextColumn("{task.description:8}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[count]:,}"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        sent = bars.add_task("sent", total=1.0, count=0)
        answered = bars.add_task("answered", total=None, count=0, visible=waits)

        def show() -> None:
            bars.update(sent, completed=file.done, count=progress.appended)
            bars.update(
                answered,
                visible=waits or progress.collected > 0,
                total=progress.appended / max(file.done, 1e-9),
                completed=progress.collected,
                count=progress.collected,
            )

        yield show

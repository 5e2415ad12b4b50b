"""dead: what could not be served, and what to do about it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from heapq import nlargest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from millstream.cli.errors import NOT_FOUND, REFUSED, UNAVAILABLE, USAGE, CommandFailed
from millstream.cli.options import JsonOption, PrefixOption, QuietOption, RedisOption, StateDirOption
from millstream.cli.place import REDIS, Place
from millstream.cli.screen import Screen

if TYPE_CHECKING:
    from ingest.dead_letters import DeadLetter, DeadLetters

app = typer.Typer(no_args_is_help=True, help="Dead letters: requests that could not be served, and the way back.")

ModelOption = Annotated[str, typer.Option("--model", metavar="MODEL", help="Of this model only.")]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As `millstream dead list` shows it.")]
MaybeIdArgument = Annotated[str, typer.Argument(metavar="[ID]", help="As `millstream dead list` shows it.")]


@app.command("list")
def list_letters(
    model: ModelOption = "",
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, max=100_000, help="Most letters.")] = 100,
    prefix: PrefixOption = "ms",
    state_dir: StateDirOption = None,
    redis_url: RedisOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List dead letters, newest first.

    `reason` is why: MODEL_CRASHED for a request that ended worker processes, MALFORMED for what is no request.

    [bold]Examples[/bold]

      millstream dead list
      millstream dead list --model churn --json
    """
    screen = Screen(as_json=as_json, quiet=quiet)
    with _opened(state_dir, redis_url, prefix) as (letters, now_ms):
        found = [letter for name in _models(letters, model) for letter in letters.newest(name, limit)]
    found = nlargest(limit, found, key=lambda letter: _order(letter.id))
    if as_json:
        for letter in found:
            screen.line(_summary(letter, now_ms))
    elif found:
        rows = [
            (
                letter.id,
                letter.model_id,
                _age(now_ms - letter.at_ms),
                letter.reason,
                letter.lane,
                letter.crashes,
                letter.request_id,
            )
            for letter in found
        ]
        screen.table(("id", "model", "age", "reason", "lane", "crashes", "request"), rows)
    screen.note(f"{len(found)} dead letters" + (f", the limit (--limit {limit})" if len(found) == limit else ""))


@app.command("show")
def show(
    letter_id: IdArgument,
    model: ModelOption = "",
    prefix: PrefixOption = "ms",
    state_dir: StateDirOption = None,
    redis_url: RedisOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show a dead letter and the request in it.

    [bold]Example[/bold]

      millstream dead show 1767225600000-0
    """
    import json

    screen = Screen(as_json=as_json, quiet=quiet)
    with _opened(state_dir, redis_url, prefix) as (letters, now_ms):
        letter = _one(letters, model, letter_id)
    content = {
        **_summary(letter, now_ms),
        "entry_id": letter.entry_id,
        "field": letter.field,
        "body": letter.decoded(),
    }
    if as_json:
        screen.line(content)
        return
    for name, value in content.items():
        if name != "body":
            screen.text(f"{name:<11} {value}")
    body = content["body"]
    # Escaped: what anybody wrote must not steer the terminal.
    screen.text(json.dumps(body, indent=2))


@app.command("retry")
def retry(
    letter_id: MaybeIdArgument = "",
    every: Annotated[bool, typer.Option("--all", help="All of them, or all of one --model.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also what ended worker processes.")] = False,
    model: ModelOption = "",
    prefix: PrefixOption = "ms",
    state_dir: StateDirOption = None,
    redis_url: RedisOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Put dead letters back, as new requests on the bulk lane; ends with code 3 where some can't go back.

    A request keeps its id where its old reply has expired, else it gets a fresh one, which is shown: the result is
    asked for by it.

    [bold]Examples[/bold]

      millstream dead retry 1767225600000-0
      millstream dead retry --all --model churn
    """
    from ingest.dead_letters import NotRetried

    screen = Screen(as_json=as_json, quiet=quiet)
    left: list[str] = []
    went = 0
    with _opened(state_dir, redis_url, prefix) as (letters, _):
        for letter in _chosen(letters, model, letter_id, every=every):
            if letter.poison and not force:
                left.append(
                    f"{letter.id} of {letter.model_id} ended {letter.crashes} worker processes; "
                    "once the model is mended, --force puts it back"
                )
                continue
            try:
                put = letters.retry(letter)
            except NotRetried as error:
                left.append(f"{error}; `millstream dead drop` removes it")
                continue
            if put is None:
                screen.note(f"{letter.id} of {letter.model_id} is gone already")
                continue
            went += 1
            if as_json:
                screen.line(
                    {
                        "id": letter.id,
                        "model_id": letter.model_id,
                        "request_id": put.request_id,
                        "entry_id": put.entry_id,
                    }
                )
            else:
                screen.text(f"{letter.id}  millstream result {letter.model_id} {put.request_id} --wait 10")
    screen.note(f"{went} put back, {len(left)} left")
    if left:
        raise CommandFailed("\n".join([*left[:20], *(["…"] if len(left) > 20 else [])]), REFUSED)


@app.command("drop")
def drop(
    letter_id: MaybeIdArgument = "",
    every: Annotated[bool, typer.Option("--all", help="All of them, or all of one --model.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    model: ModelOption = "",
    prefix: PrefixOption = "ms",
    state_dir: StateDirOption = None,
    redis_url: RedisOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Remove dead letters for good. The event log keeps how their requests ended.

    [bold]Examples[/bold]

      millstream dead drop 1767225600000-0
      millstream dead drop --all --model churn --yes
    """
    screen = Screen(as_json=as_json, quiet=quiet)
    with _opened(state_dir, redis_url, prefix) as (letters, _):
        # Only what was there when the question was asked.
        chosen = [(letter.model_id, letter.id) for letter in _chosen(letters, model, letter_id, every=every)]
        if chosen and not yes:
            _ask(chosen)
        dropped = sum(letters.drop(*each) for each in chosen)
    if as_json:
        screen.line({"dropped": dropped})
    else:
        screen.text(f"{dropped} dropped")


@contextmanager
def _opened(state_dir: Path | None, redis_url: str, prefix: str) -> Iterator[tuple[DeadLetters, int]]:
    """The dead letters, and the server's time in milliseconds."""
    from redis.exceptions import RedisError

    from contract.connection import connect
    from ingest.dead_letters import DeadLetters

    place = Place.of(state_dir, redis=redis_url)
    try:
        client = connect(place.address(REDIS))
    except ValueError as error:
        raise CommandFailed(f"--redis-url: {error}", USAGE) from None
    try:
        seconds, micros = client.time()
        yield DeadLetters(client, prefix), int(seconds) * 1000 + int(micros) // 1000
    except (RedisError, OSError) as error:
        raise CommandFailed(f"Redis can't be asked: {error}", UNAVAILABLE) from None
    finally:
        client.close()


def _models(letters: DeadLetters, model: str) -> list[str]:
    return [model] if model else letters.models()


def _chosen(letters: DeadLetters, model: str, letter_id: str, *, every: bool) -> Iterator[DeadLetter]:
    if every == bool(letter_id):
        raise CommandFailed("name the ID of one dead letter, or --all", USAGE)
    if letter_id:
        yield _one(letters, model, letter_id)
    else:
        for name in _models(letters, model):
            yield from letters.all(name)


def _one(letters: DeadLetters, model: str, letter_id: str) -> DeadLetter:
    first, _, second = letter_id.partition("-")
    if not (first.isdecimal() and second.isdecimal() and letter_id.isascii() and len(letter_id) <= 41):
        raise CommandFailed(
            f"expected an ID such as 1767225600000-0, as `millstream dead list` shows it; got {letter_id[:80]!r}", USAGE
        )
    found = [letter for name in _models(letters, model) if (letter := letters.find(name, letter_id))]
    if not found:
        raise CommandFailed(f"there is no dead letter {letter_id}" + (f" of {model}" if model else ""), NOT_FOUND)
    if len(found) > 1:
        names = ", ".join(letter.model_id for letter in found)
        raise CommandFailed(f"{letter_id} is a dead letter of each of {names}: say which with --model", USAGE)
    return found[0]


def _ask(chosen: Sequence[tuple[str, str]]) -> None:
    model_id, letter_id = chosen[0]
    what = f"{letter_id} of {model_id}" if len(chosen) == 1 else f"{len(chosen)} dead letters"
    try:
        sure = typer.confirm(f"Remove {what} for good?", err=True)
    except typer.Abort:
        if sys.stdin.isatty():
            raise
        raise CommandFailed("nobody is there to be asked: --yes removes without asking", USAGE) from None
    if not sure:
        raise CommandFailed("nothing was removed", REFUSED)


def _summary(letter: DeadLetter, now_ms: int) -> dict[str, Any]:
    return {
        "id": letter.id,
        "model_id": letter.model_id,
        "at": datetime.fromtimestamp(letter.at_ms / 1000, UTC).isoformat(timespec="milliseconds"),
        "age_s": (now_ms - letter.at_ms) / 1000,
        "reason": letter.reason,
        "lane": letter.lane,
        "crashes": letter.crashes,
        "request_id": letter.request_id,
    }


def _order(letter_id: str) -> tuple[int, int]:
    first, _, second = letter_id.partition("-")
    return int(first), int(second)


def _age(ms: int) -> str:
    seconds = max(0, ms) // 1000
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"

"""registry publish: a version of one's own into the store."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from millstream.cli.errors import FALSE, NOT_FOUND, REFUSED, UNAVAILABLE, USAGE, CommandFailed
from millstream.cli.options import JsonOption, QuietOption, StateDirOption
from millstream.cli.screen import Screen

if TYPE_CHECKING:
    from contract.settings import Settings
    from millstream.publish import Prepared, Wishes
    from registry.publishing.local_version import LocalVersion
    from registry.publishing.upload import Progress, Published

_DRAFT, _STORE = "The draft of a signature", "Where"
_STATUSES = ("production", "canary", "shadow", "staging", "retired")


def _status(value: str | None) -> str | None:
    if value is not None and value not in _STATUSES:
        raise typer.BadParameter(f"expected one of {', '.join(_STATUSES)}")
    return value


def publish(
    path: Annotated[
        Path, typer.Argument(metavar="FOLDER|FILE", help="A version's folder with signature.json, or a model file.")
    ],
    status: Annotated[
        str | None,
        typer.Option(
            "--status",
            metavar="STATUS",
            callback=_status,
            help="production, canary, shadow, staging or retired, instead of what the signature says.",
            show_default=False,
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option("--key", metavar="FILE", help="Sign the version as its publisher, with this key.", dir_okay=False),
    ] = None,
    no_try: Annotated[
        bool, typer.Option("--no-try", help="Do not load the model and run its examples before it is sent.")
    ] = False,
    store: Annotated[
        str,
        typer.Option(
            "--store",
            metavar="URL",
            envvar="MILLSTREAM_STORE_URL",
            help="A folder, or azure://container/prefix (default: the models of the state directory).",
            rich_help_panel=_STORE,
        ),
    ] = "",
    state_dir: StateDirOption = None,
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="What to call it.", rich_help_panel=_DRAFT)
    ] = "",
    version: Annotated[str, typer.Option("--version", metavar="V", help="Its version.", rich_help_panel=_DRAFT)] = "",
    csv: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            metavar="FILE",
            help="Rows it was trained on: names and types are read from it.",
            rich_help_panel=_DRAFT,
        ),
    ] = None,
    output: Annotated[
        str, typer.Option("--output", metavar="NAME", help="What to call what it answers.", rich_help_panel=_DRAFT)
    ] = "",
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Take the drafted signature without asking.", rich_help_panel=_DRAFT)
    ] = False,
    draft: Annotated[
        bool,
        typer.Option("--draft", help="Print the drafted signature, and publish nothing.", rich_help_panel=_DRAFT),
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Publish a version: its files first, its signature last, so that no poll takes in half of it.

    A version never changes: other contents are refused. What is there already is not sent again, so an interrupted
    run is simply repeated.

    Of a model file alone the signature is drafted, and shown before it is taken. Without --no-try the model is loaded
    here, which runs its code, and answers its golden examples.

    [bold]Examples[/bold]

      millstream registry publish models/churn/1.1.0 --store azure://ai-models
      millstream registry publish churn_v2.joblib --csv train.csv --status production
    """
    import anyio

    from millstream.cli.roles import settings_of
    from millstream.publish import Wishes
    from registry.blobs import ContainerMissing, StoreError, StoreUnavailable, StoreUrlError
    from registry.publishing.local_version import PublishRefused

    screen = Screen(as_json=as_json, quiet=quiet)
    settings = settings_of(store_url=store or None, state_dir=state_dir)
    wishes = Wishes(model, version, status or "", output, csv, _container(settings))
    command = _Command(screen, settings, path, wishes, key, tries=not no_try, yes=yes, only_draft=draft)
    try:
        anyio.run(command.run)
    except PublishRefused as error:
        raise CommandFailed(str(error), REFUSED) from None
    except StoreUrlError as error:
        raise CommandFailed(str(error), USAGE) from None
    except ContainerMissing as error:
        raise CommandFailed(str(error), NOT_FOUND) from None
    except StoreUnavailable as error:
        raise CommandFailed(f"{error}; what was sent stays: repeat it to go on", UNAVAILABLE) from None
    except StoreError as error:
        raise CommandFailed(str(error), REFUSED) from None


class _Command:
    """One run of `registry publish`."""

    def __init__(
        self,
        screen: Screen,
        settings: Settings,
        path: Path,
        wishes: Wishes,
        key: Path | None,
        *,
        tries: bool,
        yes: bool,
        only_draft: bool,
    ) -> None:
        self._screen = screen
        self._settings = _with_store(settings)
        self._path = path
        self._wishes = wishes
        self._key = key
        self._tries = tries
        self._yes = yes
        self._only_draft = only_draft

    async def run(self) -> None:
        from anyio import from_thread, to_thread

        from contract.trust import KeyUnusable, publisher_key, publisher_text
        from millstream.publish import prepare
        from registry.blobs.configured import configured_store
        from registry.publishing.upload import publish as put
        from registry.publishing.upload import published_versions

        try:
            key = publisher_key(self._key) if self._key else None
        except KeyUnusable as error:
            raise CommandFailed(str(error), REFUSED) from None
        async with configured_store(self._settings) as store:

            def published(model_id: str) -> list[str]:
                return from_thread.run(published_versions, store, model_id)

            prepared = await to_thread.run_sync(prepare, self._path, self._wishes, published)
            if not await to_thread.run_sync(self._is_taken, prepared):
                return
            version = prepared.version
            if self._tries:
                await self._try(version)
            with _bars(self._screen) as progress:
                done = await put(store, version, key=key, progress=progress)
            self._tell(version, done, publisher_text(key.public_key()) if key else "")

    def _is_taken(self, prepared: Prepared) -> bool:
        """Shows a drafted signature; false where it is not to be published."""
        for note in (*prepared.notes, *prepared.version.warnings):
            self._screen.note(f"note: {note}")
        text = prepared.version.signature_json.decode().rstrip()
        if self._only_draft:
            self._screen.text(text)
            return False
        if not prepared.is_drafted:
            return True
        self._screen.note(f"The signature of {prepared.version.name}, drafted from the model:\n{text}")
        if self._yes:
            return True
        if not sys.stdin.isatty():
            raise CommandFailed(
                f"the drafted signature needs a look: take it with --yes, or put what --draft prints into "
                f"{self._path.stem}.signature.json beside the model, correct it there, and publish that",
                REFUSED,
            )
        if typer.confirm("Publish it so?", err=True):
            return True
        raise typer.Exit(FALSE)

    async def _try(self, version: LocalVersion) -> None:
        """Loads it in a process of its own, as the registry will; raises CommandFailed where it would be refused."""
        from contract.trial import TrialFile
        from millstream.roles import THREAD_LIMITS
        from millstream.trial import trials
        from registry.trial import OnTrial, TrialUnavailable

        self._screen.note("trying it …")
        files = [
            OnTrial(TrialFile(name, file.sha256, file.size), partial(_chunks, file.path))
            for name, file in version.files.items()
        ]
        here = self._settings.model_copy(update={"trial_address": ""})
        try:
            async with trials(here, THREAD_LIMITS) as trial:
                verdict = await trial(version.signature_json, files)
        except (TrialUnavailable, OSError) as error:
            raise CommandFailed(f"{error}; repeat it, or leave the trial out with --no-try", UNAVAILABLE) from None
        if verdict.reason:
            raise CommandFailed(f"{version.name} is not published: {verdict.reason}", REFUSED)
        for warning in verdict.warnings:
            self._screen.note(f"note: {warning}")
        count = len(version.signature.golden)
        answered = (
            f"answers its {count} golden example{'s' * (count > 1)}"
            if count
            else "answers an example, and has no golden ones"
        )
        self._screen.note(f"tried: it loads in {verdict.load_s:.1f} s and {answered}")

    def _tell(self, version: LocalVersion, done: Published, publisher: str) -> None:
        status = version.signature.status
        if self._screen.as_json:
            self._screen.line(
                {
                    "model_id": version.signature.model_id,
                    "version": version.signature.version,
                    "status": status,
                    "digest": version.digest,
                    "location": done.location,
                    "state": done.state,
                    "sent": list(done.sent),
                    "kept": list(done.kept),
                    "publisher": publisher,
                }
            )
        else:
            said = {"new": "is published", "changed": "was there and is brought up to date", "unchanged": "was there"}
            self._screen.text(f"{version.name} {said[done.state]}: {done.location}")
            self._screen.text(f"  digest  {version.digest}")
            for word, names in (("sent", done.sent), ("kept", done.kept)):
                if names:
                    self._screen.text(f"  {word}    {', '.join(names)}")
            if publisher:
                self._screen.text(f"  signed  {publisher}")
        if self._settings.trusted_publishers and not publisher:
            self._screen.note("trusted_publishers is set, and --key was not given: the registry may refuse it")
        self._screen.note(_next(status, self._settings.poll_s))


def _next(status: str, poll_s: float) -> str:
    """What happens to it now, and how to see it."""
    look = f"the registry sees it at its next look, every {poll_s:g} s, or now with `millstream registry sync`"
    if status == "production":
        return f"{look}; it answers once it was tried and every worker has loaded it: `millstream registry list`"
    if status in ("canary", "shadow"):
        return f"{look}; it is tagged {status}"
    return f"{look}; tagged {status}, it is listed and not served: publish it again with --status production for that"


def _with_store(settings: Settings) -> Settings:
    """The settings with a store: the one they name, else the models that `up` serves from its state directory."""
    from millstream.local.state_dir import StateDir

    if settings.store_url:
        return settings
    models = StateDir(settings.state_dir).path / "models"
    if not models.is_dir():
        raise CommandFailed(
            f"no store is named, and {models} is not there: give --store DIR or azure://container", USAGE
        )
    return settings.model_copy(update={"store_url": str(models)})


def _container(settings: Settings) -> str:
    """What a drafted signature gives as azure_location."""
    scheme, _, rest = settings.store_url.partition("://")
    return rest.rstrip("/") if scheme == "azure" else ""


async def _chunks(file: Path) -> AsyncIterator[bytes]:
    import anyio

    async with await anyio.open_file(file, "rb") as opened:
        while piece := await opened.read(1 << 20):
            yield piece


@contextmanager
def _bars(screen: Screen) -> Iterator[Progress | None]:
    """A bar on stderr for each file that is sent; none where nobody would see them."""
    if not screen.watched:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns: tuple[Any, ...] = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(name: str, done: int, size: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=size)
            bars.update(tasks[name], completed=done, total=size)

        yield show

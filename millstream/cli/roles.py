"""The commands that run something: everything on one machine, or one role of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from millstream.cli.options import JsonOption, QuietOption
from millstream.cli.screen import Screen

if TYPE_CHECKING:
    from contract.settings import Settings

_SETTINGS = "Settings"
_FEATURES = "Features"
_EMBEDDED = "Embedded server"


def _option(*names: str, panel: str = _SETTINGS, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, show_default=False, **more)


StateDirOption = Annotated[
    Path | None,
    _option("--state-dir", metavar="DIR", help="Where databases, keys and logs stand (default: ./millstream-state)."),
]
RedisOption = Annotated[
    str | None, _option("--redis-url", metavar="URL", help="Your Redis or Valkey; without it one is started.")
]
NeededRedisOption = Annotated[str | None, _option("--redis-url", metavar="URL", help="Redis or Valkey to work with.")]
PrefixOption = Annotated[str | None, _option("--prefix", help="First part of every key (default: ms).")]
ListenOption = Annotated[
    str | None,
    _option(
        "--listen",
        metavar="HOST:PORT",
        help="Where the gateway listens; port 0 takes a free one (default: 127.0.0.1:50051).",
    ),
]
EngineOption = Annotated[str | None, _option("--engine", help="auto, grpcio or native (default: auto).")]
WorkersOption = Annotated[int | None, _option("--workers", min=1, help="Worker processes (default: 1).")]
StoreOption = Annotated[
    str | None,
    _option(
        "--store",
        metavar="DIR|URL",
        help="Where the models are: a folder, or azure://container or azure://container/prefix.",
    ),
]
PollOption = Annotated[
    float | None,
    _option("--poll", metavar="SECONDS", help="How often the registry looks into the store (default: 300)."),
]
FeaturesUrlOption = Annotated[
    str | None,
    _option(
        "--features-url", metavar="URL", panel=_FEATURES, help="Redis of the feature store (default: the main one)."
    ),
]
FeaturesFileOption = Annotated[
    Path | None,
    _option("--features-file", metavar="FILE", panel=_FEATURES, help="Parquet or DuckDB snapshot to fall back on."),
]
FsyncOption = Annotated[
    str | None,
    _option("--fsync", panel=_EMBEDDED, help="everysec or always: what a power loss may cost (default: everysec)."),
]
MaxMemoryOption = Annotated[
    str | None,
    _option("--maxmemory", metavar="SIZE", panel=_EMBEDDED, help="Such as 2gb (default: a quarter of RAM)."),
]
AcceptGapOption = Annotated[
    bool,
    typer.Option(
        "--accept-gap",
        help="Let events that are gone for good be a gap in the event log, and go on; this once.",
    ),
]
ModelsOption = Annotated[
    list[str] | None, _option("--model", metavar="MODEL", help="Serve this model only; repeatable.")
]
LogLevelOption = Annotated[str | None, _option("--log-level", help="debug, info, warning or error (default: info).")]
LogFormatOption = Annotated[str | None, _option("--log-format", help="auto, console or json (default: auto).")]


def up(
    state_dir: StateDirOption = None,
    store: StoreOption = None,
    listen: ListenOption = None,
    workers: WorkersOption = None,
    redis_url: RedisOption = None,
    prefix: PrefixOption = None,
    engine: EngineOption = None,
    poll: PollOption = None,
    features_url: FeaturesUrlOption = None,
    features_file: FeaturesFileOption = None,
    fsync: FsyncOption = None,
    maxmemory: MaxMemoryOption = None,
    accept_gap: AcceptGapOption = False,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run everything on this machine: Redis, registry, workers, event log and gateway, until Ctrl-C.

    Without --store the stock models are trained and served.

    [bold]Examples[/bold]

      millstream up
      millstream up --store models/ --workers 4
      millstream up --store azure://ai-models --redis-url redis://HOST:6379
    """
    from millstream.up import up as run

    settings = settings_of(
        state_dir=state_dir,
        store_url=store,
        listen=listen,
        workers=workers,
        redis_url=redis_url,
        prefix=prefix,
        engine=engine,
        poll_s=poll,
        features_url=features_url,
        features_file=features_file,
        embedded_fsync=fsync,
        embedded_maxmemory=maxmemory,
        log_level=log_level,
        log_format=log_format,
    )
    if settings.embedded_maxmemory:
        from millstream.cli.errors import USAGE, CommandFailed
        from millstream.local.embedded_redis import memory_limit

        try:
            memory_limit(settings.embedded_maxmemory)
        except ValueError as error:
            name = "--maxmemory" if maxmemory else "MILLSTREAM_EMBEDDED_MAXMEMORY"
            raise CommandFailed(f"{name}: {error}", USAGE) from None
    _end(run(settings, store=settings.store_url, quiet=quiet, accept_gap=accept_gap))


def demo(
    state_dir: StateDirOption = None,
    workers: WorkersOption = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running afterwards, until Ctrl-C.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Start everything, ask it questions of every kind, prove the record of them, and stop again.

    Ends with code 1 where something did not come out as it should.

    [bold]Example[/bold]

      millstream demo
    """
    from millstream.demo.demo import demo as run

    _end(run(settings_of(state_dir=state_dir, workers=workers), keep=keep, as_json=as_json, quiet=quiet))


def serve(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A fitted model, see docs/formats.md.")],
    csv: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", help="Rows it was trained on: names and types are read from it."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="What to call it (default: the file's name).", show_default=False),
    ] = None,
    version: Annotated[str, typer.Option("--version", metavar="V", help="Its version.")] = "1.0.0",
    output: Annotated[
        str | None, typer.Option("--output", metavar="NAME", help="What to call what it answers.", show_default=False)
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask before the file is loaded, which runs its code.")
    ] = False,
    state_dir: StateDirOption = None,
    listen: ListenOption = None,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
) -> None:
    """Serve a model of your own: draft its signature, publish it, start everything, and print how to ask it.

    [bold]Examples[/bold]

      millstream serve churn.joblib --csv train.csv
    """
    from millstream.cli.errors import REFUSED, CommandFailed
    from millstream.serve import ModelRefused
    from millstream.serve import serve as run

    settings = settings_of(state_dir=state_dir, listen=listen, workers=workers)
    try:
        _end(run(settings, file, csv=csv, model_id=model, version=version, output=output, yes=yes, quiet=quiet))
    except ModelRefused as error:
        raise CommandFailed(str(error), REFUSED) from None


def stock(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write them.")],
    quiet: QuietOption = False,
) -> None:
    """Train the stock models and write them to a folder that `up --store` serves.

    [bold]Example[/bold]

      millstream stock models/
    """
    from millstream.cli.errors import REFUSED, CommandFailed
    from millstream.stock import write_stock

    screen = Screen(quiet=quiet)
    try:
        written = write_stock(directory, progress=screen.note)
    except OSError as error:
        raise CommandFailed(f"{directory} can't be written to: {error.strerror or error}", REFUSED) from None
    for folder in written:
        screen.text(str(folder))


def gateway(
    redis_url: NeededRedisOption = None,
    listen: ListenOption = None,
    prefix: PrefixOption = None,
    engine: EngineOption = None,
    features_url: FeaturesUrlOption = None,
    features_file: FeaturesFileOption = None,
    state_dir: StateDirOption = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> None:
    """Run one gateway: the gRPC server for callers.

    [bold]Example[/bold]

      millstream gateway --redis-url redis://HOST:6379 --listen 0.0.0.0:50051
    """
    from millstream.roles import gateway as run

    run(
        _serving(
            redis_url=redis_url,
            listen=listen,
            prefix=prefix,
            engine=engine,
            features_url=features_url,
            features_file=features_file,
            state_dir=state_dir,
            log_level=log_level,
            log_format=log_format,
        )
    )


def worker(
    redis_url: NeededRedisOption = None,
    workers: WorkersOption = None,
    model: ModelsOption = None,
    prefix: PrefixOption = None,
    features_url: FeaturesUrlOption = None,
    features_file: FeaturesFileOption = None,
    state_dir: StateDirOption = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> None:
    """Run an inference worker, or a pool of them with --workers.

    [bold]Example[/bold]

      millstream worker --redis-url redis://HOST:6379 --model churn
    """
    from millstream.roles import worker as run

    run(
        _serving(
            redis_url=redis_url,
            workers=workers,
            models=tuple(model) if model else None,
            prefix=prefix,
            features_url=features_url,
            features_file=features_file,
            state_dir=state_dir,
            log_level=log_level,
            log_format=log_format,
        )
    )


def sink(
    redis_url: NeededRedisOption = None,
    listen: Annotated[
        str | None,
        _option(
            "--listen",
            metavar="HOST:PORT",
            help="Where the event log listens (default: 127.0.0.1:50053).",
        ),
    ] = None,
    prefix: PrefixOption = None,
    state_dir: StateDirOption = None,
    accept_gap: AcceptGapOption = False,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> None:
    """Run the event sink, the only process that writes the event log, and its query service.

    [bold]Example[/bold]

      millstream sink --redis-url redis://HOST:6379 --listen 0.0.0.0:50053
    """
    from millstream.roles import sink as run

    run(
        _serving(
            redis_url=redis_url,
            sink_listen=listen,
            prefix=prefix,
            state_dir=state_dir,
            log_level=log_level,
            log_format=log_format,
        ),
        accept_gap=accept_gap,
    )


def registry(
    redis_url: NeededRedisOption = None,
    store: StoreOption = None,
    listen: Annotated[
        str | None,
        _option(
            "--listen",
            metavar="HOST:PORT",
            help="Where the registry listens (default: 127.0.0.1:50052).",
        ),
    ] = None,
    poll: PollOption = None,
    prefix: PrefixOption = None,
    state_dir: StateDirOption = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> None:
    """Run the registry: watches the blob store and puts production models into service.

    [bold]Example[/bold]

      millstream registry run --redis-url redis://HOST:6379 --store azure://ai-models
    """
    from millstream.roles import registry as run

    run(
        settings_of(
            redis_url=redis_url,
            store_url=store,
            registry_listen=listen,
            poll_s=poll,
            prefix=prefix,
            state_dir=state_dir,
            log_level=log_level,
            log_format=log_format,
        )
    )


def trial(
    listen: Annotated[
        str | None,
        _option("--listen", metavar="unix:/PATH", help="The socket that a registry reaches it by."),
    ] = None,
) -> None:
    """Run the trial of new versions for a registry, as a user without keys and on a machine's side without network.

    It loads what the registry sends, tells what became of it, and never talks to anybody else.

    [bold]Example[/bold]

      millstream trial --listen unix:/run/millstream-trial/trial.sock
    """
    from millstream.roles import trial as run

    run(settings_of(trial_address=listen))


def settings_of(**flags: Any) -> Settings:
    """The settings in force with these flags; one that is None was not given. Raises SettingsError."""
    from contract.settings import Settings

    return Settings.read(**flags)


def _serving(**flags: Any) -> Settings:
    """The same for a process that requests pass through: it begins anew where it can have a faster allocator."""
    from millstream.local.allocator import preloaded

    return preloaded(settings_of(**flags))


def _end(exit_code: int | None) -> None:
    if exit_code:
        raise typer.Exit(exit_code)

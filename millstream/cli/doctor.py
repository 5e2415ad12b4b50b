"""doctor: whether Millstream can run here, and whether what runs is well."""

from __future__ import annotations

import typer

from millstream.cli.errors import FALSE
from millstream.cli.options import JsonOption, QuietOption
from millstream.cli.roles import ListenOption, PrefixOption, RedisOption, StateDirOption, settings_of
from millstream.cli.screen import Screen


def doctor(
    state_dir: StateDirOption = None,
    redis_url: RedisOption = None,
    listen: ListenOption = None,
    prefix: PrefixOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check this machine, and what runs on it, without changing anything; ends with code 1 where something fails.

    [bold]Examples[/bold]

      millstream doctor
      millstream doctor --redis-url redis://HOST:6379
    """
    import anyio

    from millstream.doctor import examine

    screen = Screen(as_json=as_json, quiet=quiet)
    settings = settings_of(state_dir=state_dir, redis_url=redis_url, listen=listen, prefix=prefix)

    async def look() -> int:
        failed = 0
        async for finding in examine(settings):
            failed += finding.verdict == "fail"
            if as_json:
                screen.line({"subject": finding.subject, "verdict": finding.verdict, "detail": finding.detail})
            elif not quiet or finding.verdict != "ok":
                screen.text(str(finding))
        return failed

    if anyio.run(look):
        raise typer.Exit(FALSE)

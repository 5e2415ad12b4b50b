"""registry keygen: the key that says whose versions they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from millstream.cli.errors import REFUSED, CommandFailed
from millstream.cli.options import JsonOption, QuietOption
from millstream.cli.screen import Screen


def keygen(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to put the private key.", dir_okay=False)],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make a publisher's key: the private one in FILE, for you alone, and the public one in FILE.pub.

    The public key goes into the setting trusted_publishers of the registry; with it set, the registry takes no version
    that none of these keys signed.

    [bold]Example[/bold]

      millstream registry keygen publisher.pem
    """
    from contract.trust import KeyUnusable, new_publisher_key

    screen = Screen(as_json=as_json, quiet=quiet)
    try:
        text = new_publisher_key(file)
    except KeyUnusable as error:
        raise CommandFailed(str(error), REFUSED) from None
    if as_json:
        screen.line({"public_key": text, "private_key_file": str(file)})
    else:
        screen.text(text)
    screen.note(f"{file} is the private key: keep it, and show it to nobody")
    screen.note(f"the registry trusts it with MILLSTREAM_TRUSTED_PUBLISHERS={text}")

"""`millstream serve FILE`: from somebody's own model to an answer, with nothing else to write."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from rich.console import Console
from rich.syntax import Syntax

from contract.settings import Settings
from millstream.draft import Draft, DraftFailed, draft
from millstream.local.state_dir import StateDir, replace_file
from millstream.up import House, up

RUNS_CODE = (".joblib", ".pkl", ".pt", ".pt2")
"""Loading one of these runs what its author put into it."""


class ModelRefused(Exception):
    """A file that holds no model to serve, or not the one its version holds already; the message says why."""


def serve(
    settings: Settings,
    file: Path,
    *,
    csv: Path | None = None,
    model_id: str | None = None,
    version: str = "1.0.0",
    output: str | None = None,
    yes: bool = False,
    quiet: bool = False,
) -> int:
    """Drafts, shows, publishes to the local store, and serves until Ctrl-C; the exit code.

    Raises ModelRefused where there is no model to serve, and what `up` raises.
    """
    console = Console(stderr=True, quiet=quiet)
    model_id = model_id or _name(file)
    if not yes and sys.stdin.isatty() and file.suffix in RUNS_CODE:
        console.print(f"Loading {file} runs the code in it.", highlight=False)
        if input("Go on? [y/N] ").strip().lower() not in ("y", "yes"):
            return 1
    try:
        drafted = draft(file, model_id=model_id, version=version, rows=csv, output=output)
    except DraftFailed as error:
        raise ModelRefused(str(error)) from None
    console.print(f"The signature of {model_id} {version}, drafted from the model" + (" and the CSV:" if csv else ":"))
    console.print(Syntax(drafted.signature.decode(), "json", background_color="default"))
    for note in drafted.notes:
        console.print(f"note: {note}", highlight=False)
    store = StateDir(settings.state_dir).create().path / "models"
    _publish(store / model_id / version, drafted)

    def tell(house: House) -> None:
        for line in _lines(house, model_id, drafted):
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    return up(settings, store=str(store), quiet=quiet, on_serving=tell)


def _publish(folder: Path, drafted: Draft) -> None:
    """Writes the version's folder; the same content again is no change, other content is another version."""
    artifact = folder / drafted.model_file
    if artifact.exists():
        if artifact.read_bytes() != drafted.artifact:
            raise ModelRefused(f"{folder} holds another model already: versions do not change, so give a new --version")
        if (folder / "signature.json").exists():
            return
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(artifact, drafted.artifact)
    # Last, since it is what makes the folder a version.
    replace_file(folder / "signature.json", drafted.signature)


def _name(file: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", file.stem).lstrip("_.-")
    return name[:128] or "model"


def _lines(house: House, model_id: str, drafted: Draft) -> list[str]:
    """Three ways on that work as they stand."""
    state = shlex.quote(str(house.settings.state_dir))
    named = " ".join(f"-f {shlex.quote(f'{name}={_plain(value)}')}" for name, value in drafted.example.items())
    features = repr(dict(drafted.example))
    return [
        "",
        "Ask it:",
        f"  millstream predict {model_id} {named} --state-dir {state}",
        "From Python:",
        # At the margin, where Python takes them as they are pasted.
        "from millstream import Client",
        f"with Client({house.gateway!r}) as client:",
        f"    answer = client.predict({model_id!r}, features={features})",
        "    print(answer.outputs)",
        "What was asked and answered:",
        f"  millstream events query --model {model_id} --state-dir {state}",
        "",
    ]


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

"""What `millstream registry publish` publishes: a version's folder, a file with its signature, or a file and a draft.

folder with signature.json                  as it stands
churn_v1.pkl beside churn_v1.signature.json that file, and the transforms its signature names
churn_v2.joblib alone                       a signature is drafted from the fitted model, and shown before it is taken
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from contract.signature import parse_signature
from contract.strict_json import StrictJsonError, parse_json
from contract.version import MODEL_SUFFIXES, SIGNATURE_FILE, version_order
from millstream.draft import DraftFailed, draft
from registry.publishing.local_version import LocalVersion, PublishRefused, files_of
from registry.watch.layout import tag_of

FIRST_VERSION = "1.0.0"

_TAG = re.compile(r"[._\- ](production|canary|shadow|staging)$", re.IGNORECASE)
_NUMBERED = re.compile(r"(?P<name>.*?)[._\- ]+v?(?P<version>[0-9]+(?:\.[0-9]+){0,3})", re.IGNORECASE)
_VERSION = re.compile(r"v?[0-9][A-Za-z0-9_.+-]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the person asked for; empty where it is to be read from the files, or guessed."""

    model_id: str = ""
    version: str = ""
    status: str = ""
    output: str = ""
    rows: Path | None = None
    location: str = ""
    """Container of a drafted signature."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A version that is ready to be sent."""

    version: LocalVersion
    is_drafted: bool
    notes: tuple[str, ...]


def prepare(path: Path, wishes: Wishes, published: Callable[[str], Iterable[str]]) -> Prepared:
    """Reads or drafts the signature and hashes the files; `published` answers a model's versions in the store.

    Drafting loads the model, which runs its code. Raises PublishRefused.
    """
    if path.name == SIGNATURE_FILE:
        path = path.parent
    if path.is_dir():
        return _folder(path, wishes, published)
    if not path.is_file():
        raise PublishRefused(f"{path} is not there: expected a version's folder or a model file")
    beside = path.with_name(f"{path.stem}.{SIGNATURE_FILE}")
    if beside.is_file():
        return _flat(path, beside, wishes)
    return _drafted(path, wishes, published)


def _folder(folder: Path, wishes: Wishes, published: Callable[[str], Iterable[str]]) -> Prepared:
    files, left_out = files_of(folder)
    if (folder / SIGNATURE_FILE).is_file():
        notes = tuple(f"{name} is left out: it could not be read from the store" for name in left_out)
        return Prepared(LocalVersion.of(_signature(folder / SIGNATURE_FILE, wishes), files), False, notes)
    models = [path for name, path in files.items() if name.endswith(MODEL_SUFFIXES)]
    if len(models) == len(files) == 1:
        return _drafted(models[0], wishes, published)
    raise PublishRefused(
        f"there is no {SIGNATURE_FILE} in {folder}: write one; of a model file that stands alone one is drafted"
    )


def _flat(path: Path, beside: Path, wishes: Wishes) -> Prepared:
    raw = _signature(beside, wishes)
    named = _named(raw)
    files = {name: path.with_name(name) for name in named if path.with_name(name).is_file()}
    return Prepared(LocalVersion.of(raw, {**files, path.name: path}), False, ())


def _named(raw: bytes) -> tuple[str, ...]:
    """The transforms that a signature names; none where it is refused, which is told later."""
    try:
        return parse_signature(raw)[0].transforms
    except ValueError:
        return ()


def _signature(file: Path, wishes: Wishes) -> bytes:
    """A signature.json, under the status that was asked for. Raises PublishRefused where it says it is another."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise PublishRefused(f"{file} can't be read: {error.strerror}") from None
    try:
        content = parse_json(raw)
    except StrictJsonError:
        return raw  # reading it as a signature says what is wrong, and where
    if not isinstance(content, dict):
        return raw
    for field, wish in (("model_id", wishes.model_id), ("version", wishes.version)):
        if wish and content.get(field) != wish:
            raise PublishRefused(f"{file} says {field} {content.get(field)!r}: correct it there, or leave out {wish!r}")
    if not wishes.status or content.get("status") == wishes.status:
        return raw
    return json.dumps({**content, "status": wishes.status}, indent=2, ensure_ascii=False).encode() + b"\n"


def _drafted(file: Path, wishes: Wishes, published: Callable[[str], Iterable[str]]) -> Prepared:
    model_id, version = guess(file)
    model_id = wishes.model_id or model_id
    version = wishes.version or version or next_version(published(model_id))
    status = wishes.status or tag_of(file.name) or "staging"
    try:
        made = draft(
            file,
            model_id=model_id,
            version=version,
            rows=wishes.rows,
            output=wishes.output or None,
            status=status,
            location=wishes.location or "local-models",
        )
    except DraftFailed as error:
        raise PublishRefused(str(error)) from None
    notes = [*made.notes, "trained_date is the day the file was written"]
    if not wishes.status and status == "staging":
        notes.append("a version in staging is not served; --status production puts it into service")
    files: Mapping[str, Path] = {f"model{file.suffix}": file}
    return Prepared(LocalVersion.of(made.signature, files), True, tuple(notes))


def guess(file: Path) -> tuple[str, str]:
    """Model and version as a model file's name has them: `churn_v1.2.joblib`, or `churn/1.2/model.joblib`.

    The version is empty where no name says it.
    """
    stem = file.stem
    while (shorter := _TAG.sub("", stem)) != stem:
        stem = shorter
    place = file.absolute().parent
    if stem.lower() == "model" and _VERSION.fullmatch(place.name):
        return _plain(place.parent.name), place.name
    if numbered := _NUMBERED.fullmatch(stem):
        return _plain(numbered["name"]), numbered["version"]
    return _plain(stem), ""


def next_version(published: Iterable[str]) -> str:
    """The version after the highest that is there: 1.4.2 -> 1.5.0, 7 -> 8."""
    highest = max(published, key=version_order, default="")
    try:
        release = Version(highest).release
    except InvalidVersion:
        return FIRST_VERSION
    if len(release) == 1:
        return str(release[0] + 1)
    return ".".join(str(part) for part in (release[0], release[1] + 1, *(0 for _ in release[2:])))


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_.-")[:128] or "model"

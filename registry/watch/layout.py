"""Where versions stand in a listing of blobs, and what their file names say of them.

credit_risk/1.0.0/signature.json            a folder: what is below it belongs to the version
credit_risk/1.0.0/model.production.joblib
churn_v1.production.pkl                     flat: a model file with its signature beside it
churn_v1.signature.json
risk.pkl                                    a model file without a signature: found, and not servable
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import sha256

from contract.signature import Signature
from contract.version import MODEL_SUFFIXES, SIGNATURE_FILE
from registry.blobs import Blob

TAGS = ("production", "canary", "shadow")
"""Words in a file name that say what a version is for, the strongest first."""

_NEGATIONS = frozenset({"pre", "non", "not", "ex", "old"})
_FILLERS = frozenset({"for", "in", "yet"})
_WORDS = re.compile(r"[._\-\s]+")
_FLAT_SUFFIX = f".{SIGNATURE_FILE}"
_DETACHED = f"{SIGNATURE_FILE}.sig"


def tag_of(name: str) -> str:
    """The strongest tag in a file's base name; empty where there is none.

    A tag is a whole word between `. _ -` and spaces, not negated by the word before it: `model.production.pkl` is
    one, `model.pre-production.pkl` is not.
    """
    words = [word for word in _WORDS.split(name.rpartition("/")[2].lower()) if word]
    found = {word for place, word in enumerate(words) if word in TAGS and not _negated(words[:place])}
    return next((tag for tag in TAGS if tag in found), "")


def _negated(before: list[str]) -> bool:
    rest = [word for word in before if word not in _FILLERS]
    return bool(rest) and rest[-1] in _NEGATIONS


def _untagged(stem: str) -> str:
    """A stem without its tags, so that a file renamed to say `production` still finds its signature."""
    return ".".join(word for word in _WORDS.split(stem.lower()) if word and word not in TAGS)


@dataclass(frozen=True, slots=True)
class FoundVersion:
    """One place in the store where a version stands, or a model file that lacks a signature."""

    place: str
    """Unique in the store: the folder, the flat signature's name, or the lone file's name."""
    location: str
    """The folder, or the model file where it stands flat."""
    signature: Blob | None
    files: Mapping[str, Blob]
    """The version's own files by their name in the version."""
    beside: Mapping[str, Blob] = field(default_factory=dict)
    """Flat form: the other files of the folder; a signature may name some as transforms."""
    endorsement: Blob | None = None
    """The publishers' signatures, `signature.json.sig`."""
    mark: str = ""

    @property
    def fingerprint(self) -> str:
        """Changes whenever a blob that may matter to the version was written, renamed, added or removed."""
        blobs = [*filter(None, (self.signature, self.endorsement))]
        seen = sha256(self.mark.encode())
        for blob in (*blobs, *self.files.values(), *self.beside.values()):
            seen.update(f"{blob.name}\0{blob.etag}\0{blob.size}\n".encode())
        return seen.hexdigest()

    @property
    def last_modified(self) -> datetime:
        """When the youngest of its own blobs was written."""
        blobs = [*filter(None, (self.signature,)), *self.files.values()]
        return max(blob.last_modified for blob in blobs)

    @property
    def tag(self) -> str:
        """What the file names say: the strongest tag of all."""
        found = {tag_of(blob.name) for blob in self.files.values()}
        return next((tag for tag in TAGS if tag in found), "")

    @property
    def guess(self) -> tuple[str, str]:
        """Model and version as the names have it, for people, where no signature can be read."""
        if self.signature is not None and self.signature.name.endswith("/" + SIGNATURE_FILE):
            folder, _, last = self.place.rpartition("/")
            return (folder.rpartition("/")[2], last) if folder else (last, "")
        stem = self.location.rpartition("/")[2].partition(".")[0]
        return self.location.partition("/")[0] if "/" in self.location else stem, ""

    def chosen(self, signature: Signature) -> dict[str, Blob]:
        """The version's files by name once its signature is read: those of its own and those it names beside it."""
        named = {*signature.transforms, *filter(None, (signature.model_file,))}
        return {**self.files, **{name: blob for name, blob in self.beside.items() if name in named}}

    def mismatch(self, signature: Signature) -> str:
        """A warning where folders are named otherwise than the version in them; empty where they agree."""
        if self.beside or self.signature is None or self.signature.name != f"{self.place}/{SIGNATURE_FILE}":
            return ""
        expected = [signature.model_id, signature.version]
        came = self.place.split("/")[-2:]
        if came[-1].lower().removeprefix("v") == signature.version.lower().removeprefix("v"):
            expected[-1] = came[-1]
        if came == expected[-len(came) :]:
            return ""
        return f"the folder {self.place} holds {signature.model_id} {signature.version}; the signature counts"


def find_versions(blobs: Iterable[Blob], mark: str = "") -> tuple[FoundVersion, ...]:
    """All places in a listing where versions stand, sorted by place.

    Under another `mark` the same blobs have other fingerprints: it stands for the rules they are judged by.
    """
    listed = sorted(blobs, key=lambda blob: blob.name)
    folders = {_folder(blob.name): blob for blob in listed if _base(blob.name) == SIGNATURE_FILE}
    owned: dict[str, dict[str, Blob]] = {folder: {} for folder in folders}
    flat: dict[str, list[Blob]] = defaultdict(list)
    endorsements = {blob.name: blob for blob in listed if blob.name.endswith(_DETACHED)}
    for blob in listed:
        if _base(blob.name) == SIGNATURE_FILE or blob.name in endorsements:
            continue
        owner = _owner(blob.name, folders)
        if owner is None:
            flat[_folder(blob.name)].append(blob)
        elif not blob.name.endswith(_FLAT_SUFFIX):
            owned[owner][blob.name.removeprefix(f"{owner}/" if owner else "")] = blob
    found = [FoundVersion(folder, folder, folders[folder], files) for folder, files in owned.items()]
    for files in flat.values():
        found += _flat_versions(files)
    complete = [replace(each, endorsement=_endorsement(each, endorsements), mark=mark) for each in found]
    return tuple(sorted(complete, key=lambda version: version.place))


def _endorsement(found: FoundVersion, endorsements: Mapping[str, Blob]) -> Blob | None:
    return endorsements.get(f"{found.signature.name}.sig") if found.signature else None


def _flat_versions(blobs: list[Blob]) -> list[FoundVersion]:
    """The versions of one folder that has no signature.json of its own."""
    signatures = {_base(blob.name).removesuffix(_FLAT_SUFFIX): blob for blob in blobs if _is_flat_signature(blob)}
    files = [blob for blob in blobs if not _is_flat_signature(blob)]
    owned: dict[str, dict[str, Blob]] = {stem: {} for stem in signatures}
    rest: list[Blob] = []
    for blob in files:
        stem = _base(blob.name).rpartition(".")[0]
        if stem in owned:
            owned[stem][_base(blob.name)] = blob
        else:
            rest.append(blob)
    # A file renamed to say `production` belongs to the signature that was left without one.
    for blob in [blob for blob in rest if blob.name.endswith(MODEL_SUFFIXES)]:
        stem = _untagged(_base(blob.name).rpartition(".")[0])
        own = next((own for signed, own in owned.items() if not own and _untagged(signed) == stem), None)
        if own is not None:
            own[_base(blob.name)] = blob
            rest.remove(blob)
    beside = {_base(blob.name): blob for blob in rest}
    found = []
    for stem, signature in signatures.items():
        location = next((blob.name for blob in owned[stem].values()), signature.name)
        found.append(FoundVersion(signature.name, location, signature, owned[stem], beside))
    lone = [blob for blob in rest if blob.name.endswith(MODEL_SUFFIXES)]
    return found + [FoundVersion(blob.name, blob.name, None, {_base(blob.name): blob}) for blob in lone]


def _owner(name: str, folders: Mapping[str, Blob]) -> str | None:
    """The nearest folder above that holds a signature.json; the root owns only what stands in it directly."""
    folder = _folder(name)
    if not folder:
        return "" if "" in folders else None
    while folder:
        if folder in folders:
            return folder
        folder = _folder(folder)
    return None


def _is_flat_signature(blob: Blob) -> bool:
    return _base(blob.name).endswith(_FLAT_SUFFIX)


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _base(name: str) -> str:
    return name.rpartition("/")[2]

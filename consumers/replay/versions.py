"""Versions for replay: fetched from wherever they still are, checked against their digest, and loaded as a worker does.

digest in the log -> signature and files, from the first place that has them -> the same digest again -> a model

Loading a model runs its code. So a place answers only for digests that the registry recorded, or whoever asks vouches
for the place; and what it answers is refused here where its digest is another.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import redis
from redis.exceptions import RedisError
from threadpoolctl import threadpool_limits

from consumers.model.compiled import Form
from consumers.model.formats import FORMATS
from consumers.model.model import LoadedModel, OutputColumn, Rows, UnloadableModel, load_model
from consumers.model.runtime import Runtime, runtime
from consumers.worker.artifacts import ArtifactOutOfReach, ArtifactRefused, fetch
from contract.catalog import Catalog
from contract.keys import Keys
from contract.signature import Signature
from contract.version import ArtifactsError, version_digest

KEPT = 4
"""Versions in memory at once: those that answer at the same time, such as a canary and a shadow beside the live one."""


class VersionGone(Exception):
    """A version that can't be had any more; the message says why and what to do."""


class VersionUnloadable(VersionGone):
    """A version whose files are here and do not load."""


@dataclass(frozen=True, slots=True)
class Artifacts:
    """A version's files by name, and its signature."""

    signature: Signature
    files: Mapping[str, bytes]

    def is_of(self, digest: str) -> bool:
        """Whether they are the version with this hex digest."""
        found = {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()}
        try:
            return version_digest(self.signature, found) == digest
        except ArtifactsError:
            return False


Fetch = Callable[[str, str, str], Artifacts]
"""(model_id, version, hex digest) -> its artifacts. Raises VersionGone."""


class Loaded:
    """A version in memory, to be asked by the engine that answered before."""

    def __init__(self, model: LoadedModel, files: Sequence[str]) -> None:
        self.model = model
        self.libraries = frozenset(
            name
            for suffix, form in FORMATS.items()
            if any(file.endswith(suffix) for file in files)
            for name in form.distributions
        )
        """Installed packages that can have a part in its answers."""
        self._forms: dict[str, Form | None] = {}
        self._runtime: Runtime | None = None

    def predict(self, rows: Rows, engine: str = "") -> list[OutputColumn]:
        """The outputs of all rows, computed as one batch; then `model.engine` says by what. Raises PredictFailed.

        Where `engine`, as it stands in the log, names a compiled form, in that one if there is one here, else by the
        model's own library.
        """
        self.model.form = None if not engine or self.model.is_own(engine) else self._form(engine)
        return self.model.predict(rows)

    def _form(self, engine: str) -> Form | None:
        if engine not in self._forms:
            self._forms[engine] = self.model.form_named(engine)
            self._runtime = None  # it may have brought in another library
            threadpool_limits(limits=1)
        return self._forms[engine]

    @property
    def runtime(self) -> Runtime:
        """What predicts here."""
        if self._runtime is None:
            self._runtime = runtime(self.model.threads)
        return self._runtime


class Versions:
    """Versions by digest, the last few of them in memory. What can't be had is asked for once."""

    def __init__(self, *places: Fetch) -> None:
        self._places = places
        self._loaded: OrderedDict[tuple[str, int], Loaded] = OrderedDict()
        self._gone: dict[tuple[str, int], VersionGone] = {}

    def load(self, model_id: str, version: str, digest: str, threads: int = 1) -> Loaded:
        """The version with this hex digest, predicting with so many threads.

        Raises VersionGone, VersionUnloadable.
        """
        key = digest, threads
        if key in self._gone:
            raise self._gone[key]
        if key not in self._loaded:
            try:
                self._loaded[key] = _load(self._fetched(model_id, version, digest), threads)
            except VersionGone as error:
                self._gone[key] = error
                raise
            if len(self._loaded) > KEPT:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def _fetched(self, model_id: str, version: str, digest: str) -> Artifacts:
        why: list[str] = []
        for place in self._places:
            try:
                found = place(model_id, version, digest)
            except VersionGone as error:
                why.append(str(error))
                continue
            if found.is_of(digest):
                return found
            why.append("what is there has another digest")
        name = f"{model_id} {version} with the digest {digest[:12]}…"
        raise VersionGone(f"{name} is not to be had: {'; '.join(why) or 'no place to look for it was named'}")


def in_redis(client: redis.Redis, keys: Keys, catalog: Catalog) -> Fetch:
    """What the registry's signed records name: their artifacts, which a worker would load too."""

    def look(model_id: str, _version: str, digest: str) -> Artifacts:
        try:
            revision = int(client.get(keys.catalog_revision) or 0)
            if revision != catalog.revision:
                catalog.update(revision, client.hgetall(keys.catalog))  # type: ignore[arg-type]
        except RedisError as error:
            raise VersionGone(f"Redis can't be asked: {error}") from None
        record = catalog.records.get(model_id)
        versions = record.versions.values() if record is not None else ()
        found = next((each for each in versions if each.digest.hex() == digest), None)
        if found is None:
            raise VersionGone(catalog.untrusted.get(model_id, "no signed record in Redis names it"))
        try:
            return Artifacts(found.signature, {each.name: fetch(client, keys, each) for each in found.artifacts})
        except (ArtifactOutOfReach, ArtifactRefused) as error:
            raise VersionGone(str(error)) from None

    return look


def _load(artifacts: Artifacts, threads: int) -> Loaded:
    """As a worker does, but for the compiled form, and golden examples are not what is asked about here."""
    try:
        model = load_model(artifacts.signature, artifacts.files, threads)
    except UnloadableModel as error:
        raise VersionUnloadable(str(error)) from None
    for _ in range(2):
        with suppress(UnloadableModel):
            model.warm()
    # A library that came with it starts with as many threads as there are cores, where no variable forbids it.
    threadpool_limits(limits=1)
    return Loaded(model, list(artifacts.files))

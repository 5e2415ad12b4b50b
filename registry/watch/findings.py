"""Findings: what one look brings to light, written into the catalogue, the log and the look's answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import structlog
from anyio import to_thread

from contract.signature import Signature
from registry.blobs import BlobChanged, BlobNotFound, ContainerMissing, StoreError, StoreUnavailable
from registry.catalogue.catalogue import Catalogue
from registry.catalogue.known import Act, KnownVersion, Place, now
from registry.promotion.timeline import Statement
from registry.trial import TrialUnavailable
from registry.watch.drafts import stronger
from registry.watch.layout import FoundVersion

_log = structlog.get_logger()


class Findings:
    """Of the look that is under way; `begin` starts them over."""

    def __init__(self, catalogue: Catalogue, url: str, spool_folder: object) -> None:
        self._catalogue = catalogue
        self._url = url
        self._spool_folder = spool_folder
        self.begin()

    def begin(self) -> None:
        """Forgets the look before."""
        self.downloaded = 0
        self.changes: list[str] = []
        self.problems: list[str] = []
        self.trouble: dict[str, str] = {}
        """Place -> a problem that may pass; looked at again each time."""

    @asynccontextmanager
    async def contained(self, place: str, location: str) -> AsyncIterator[None]:
        """Keeps the fault of one place to itself; what concerns the whole store goes on up."""
        try:
            yield
        except (StoreUnavailable, ContainerMissing):
            raise
        except (BlobChanged, BlobNotFound) as error:
            self._trouble(place, f"{error}; looked at again at the next poll")
        except (TrialUnavailable, StoreError) as error:
            self._trouble(place, str(error))
        except OSError as error:
            if isinstance(error, ConnectionError | TimeoutError):
                raise
            self._trouble(place, f"cannot spool {location} in {self._spool_folder}: {error.strerror}; make room there")

    def _trouble(self, place: str, problem: str) -> None:
        self.trouble[place] = problem
        self.problems.append(f"{place}: {problem}")
        _log.error("version not taken in", place=place, problem=problem)

    async def refuse_place(
        self, found: FoundVersion, problem: str, signature: Signature | None = None, digest: str = ""
    ) -> None:
        """Records that what stands there is not servable, and why."""
        model_id, version = (signature.model_id, signature.version) if signature else found.guess
        before = self._catalogue.places.get(found.place)
        tag = stronger(found.tag, signature.status) if signature else found.tag
        place = Place(
            found.place, found.fingerprint, model_id, version, digest, tag,
            f"{self._url}/{found.location}", problem, (), before.first_seen if before else now(),
        )  # fmt: skip
        self.problems.append(f"{found.place}: {problem}")
        _log.error("version refused", place=found.place, model_id=model_id, version=version, problem=problem)
        act = Act(now(), model_id, version, digest, "refused", f"{place.location}: {problem}")
        await to_thread.run_sync(self._catalogue.put_place, place, act)

    async def refuse(self, version: KnownVersion, reason: str) -> None:
        """Records that a version does not pass a gate."""
        _log.error("version refused", model_id=version.model_id, version=version.version, problem=reason)
        self.problems.append(f"{version.name}: {reason}")
        await self.change(version, "refused", reason, refused=reason)

    async def change(
        self, version: KnownVersion, act: str, detail: str, statement: Statement | None = None, **changes: str
    ) -> None:
        """Amends a version, with a line of history and what its tag says now."""
        line = self.tell(version, act, detail)
        await to_thread.run_sync(partial(self._catalogue.amend, version.key, line, statement=statement, **changes))

    def tell(self, version: KnownVersion, act: str, detail: str) -> Act:
        """The line of history about a change, which this look reports and the log shows."""
        self.changes.append(f"{version.name}: {act}, {detail}")
        _log.info(f"version {act}", model_id=version.model_id, version=version.version, detail=detail)
        return Act(now(), *version.key, version.digest, act, detail)

"""Acts: what an operator may say of a model, checked against what is known, and put on its timeline.

An act is on record before it is answered. What follows from it, loading and switching, is promotion's business.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from anyio import to_thread

from contract.record import ModelRecord
from registry.catalogue.catalogue import ENDING, Catalogue
from registry.catalogue.known import Act, KnownVersion, now
from registry.promotion.promotion import Promotion
from registry.promotion.ruling import BLOCK, OFF, Terms
from registry.promotion.timeline import (
    CANARY,
    CANARY_OFF,
    DESPITE,
    PIN,
    PROMOTE,
    RETIRE,
    ROLLBACK,
    SHADOW,
    SHADOW_OFF,
    UNPIN,
    Statement,
    Wanted,
    answered_before,
)

MOST_BY = 128


class ActRefused(Exception):
    """An act that can't be done; the message says what was expected, what came and what to do."""


class NotKnown(ActRefused):
    """A model or a version that is not there; the message names those that are."""


@dataclass(frozen=True, slots=True)
class Done:
    """An act that is on record."""

    statement: Statement
    detail: str
    """What was done and what follows, for people."""


class Acts:
    """The acts of operators, one at a time."""

    def __init__(self, catalogue: Catalogue, promotion: Promotion) -> None:
        self._catalogue = catalogue
        self._promotion = promotion

    async def promote(self, model_id: str, version: str, by: str, *, despite_gate: bool = False) -> Done:
        """Puts a version into production, past the gate where that is said. Raises ActRefused, as all of these."""
        known = self._version(model_id, version)
        goal, live = self._goal(model_id), self._live(model_id)
        if live == version and goal.production is not None and goal.production.version.version == version:
            raise ActRefused(f"{known.name} is in production already: {goal.production.statement.told}")
        told = [_takes_over(known, live), _again(known)]
        terms = self._promotion.gate.terms(model_id)
        if despite_gate:
            told.append("its gate is not asked")
        elif live and live != version and terms.policy != OFF and not self._promotion.gate.hindrance:
            told.append(f"recorded requests are replayed on it first ({terms.told})")
        if goal.pin is not None:
            told.append("the model stays pinned: later tags count for nothing until `millstream registry unpin`")
        return await self._say(known, DESPITE if despite_gate else PROMOTE, by, _joined(told))

    async def gate(self, model_id: str, by: str, changes: Mapping[str, Any], *, reset: bool) -> str:
        """Changes what a model asks of a version before it takes over; with nothing to change, what it asks."""
        self._model(model_id)
        gate = self._promotion.gate
        if not changes and not reset:
            return gate.terms(model_id).told
        if changes and reset:
            raise ActRefused("expected new terms for the gate, or to go back to the defaults; both came")
        terms: Terms | None = None if reset else replace(gate.terms(model_id), **changes)
        if terms is not None and terms.problem:
            raise ActRefused(terms.problem)
        by = _printable(by)
        told = terms.told if terms is not None else "the registry's defaults again"
        await to_thread.run_sync(
            self._catalogue.put_gate, model_id, terms, Act(now(), model_id, "", "", "gate", told, by)
        )
        gate.forget(model_id)
        told = gate.terms(model_id).told
        if gate.terms(model_id).policy == BLOCK and gate.hindrance:
            told += f"; nothing can be replayed, so every new version is held back: {gate.hindrance}"
        return told

    async def pin(self, model_id: str, version: str, by: str) -> Done:
        """Holds production at a version, the live one where none is named."""
        self._model(model_id)
        live = self._live(model_id)
        if not version and not live:
            raise ActRefused(f"{model_id} has no version in production to pin; name one")
        known = self._version(model_id, version or live)
        told = [f"{known.name} stays in production whatever tags say, until `millstream registry unpin {model_id}`"]
        if known.version != live:
            told.append(_takes_over(known, live))
        return await self._say(known, PIN, by, _joined([*told, _again(known)]))

    async def unpin(self, model_id: str, by: str) -> Done:
        """Lets the tags count again that came since the pin."""
        self._model(model_id)
        goal = self._goal(model_id)
        if goal.pin is None:
            raise ActRefused(f"{model_id} is not pinned; there is nothing to undo")
        known = self._catalogue.versions[model_id, goal.pin.version]
        return await self._say(known, UNPIN, by, "tags that came since the pin count again")

    async def rollback(self, model_id: str, by: str) -> Done:
        """Back to the version that answered before the one that answers now."""
        self._model(model_id)
        live = self._live(model_id)
        history = await to_thread.run_sync(self._catalogue.history, model_id)
        lives = [(act.at, act.version) for act in history if act.act == "live"]
        if live and (not lives or lives[-1][1] != live):
            lives.append((now(), live))  # the record is written first, its line of history a moment later
        before = answered_before(lives, self._catalogue.statements.get(model_id, ()), live)
        passed: list[str] = []
        for name in before:
            known = self._catalogue.versions.get((model_id, name))
            problem = self._hindrance(known) if known else "it is not on record any more"
            if known is not None and not problem:
                told = [_takes_over(known, live)]
                if passed:
                    told.append(f"passed over: {'; '.join(passed)}")
                return await self._say(known, ROLLBACK, by, _joined(told))
            passed.append(f"{name}: {problem}")
        there = f" ({'; '.join(passed)})" if passed else ""
        why = "no earlier version can answer" if passed or not live else f"nothing answered before {live}"
        raise ActRefused(
            f"{model_id} has nothing to roll back to: {why}{there}; `millstream registry promote` takes any version"
        )

    async def retire(self, model_id: str, version: str, by: str, *, force: bool) -> Done:
        """Takes a version out of service, whatever its tag says."""
        known = self._version(model_id, version)
        record = self._promotion.records.get(model_id)
        routing = record.routing if record else None
        told = f"{known.name} is out of service until it is promoted or tagged anew"
        if routing is not None and version == routing.production:
            others = self._after_retiring(known)
            follows = f"{others} takes over once every worker has it" if others else "no other version takes over"
            if not force:
                raise ActRefused(f"{known.name} answers now, and {follows}; say --yes to retire it all the same")
            told = f"{told}; {follows}"
        elif routing is not None and version == routing.canary and routing.canary_basis_points and not force:
            share = routing.canary_basis_points / 100
            raise ActRefused(f"{known.name} answers {share:g} % of the requests; say --yes to retire it all the same")
        return await self._say(known, RETIRE, by, told)

    async def canary(
        self, model_id: str, version: str, by: str, *, percent: float, abort_over: float, off: bool
    ) -> Done:
        """Gives a version a share of the requests that name none; a running canary keeps its salt."""
        known = self._version(model_id, version)
        goal = self._goal(model_id)
        claim = goal.canary
        is_running = claim is not None and claim.version.key == known.key
        if off:
            if not is_running:
                raise ActRefused(f"{known.name} is no canary; {_canary_is(goal)}")
            return await self._say(known, CANARY_OFF, by, f"{known.name} gets no requests any more")
        if not (math.isfinite(percent) and 0 <= percent <= 100):
            raise ActRefused(f"expected a share from 0 to 100 percent, got {percent:g}")
        if not (math.isfinite(abort_over) and 0 <= abort_over <= 1):
            raise ActRefused(f"expected a share of failures from 0 to 1 to abort over, got {abort_over:g}")
        if self._live(model_id) == version:
            raise ActRefused(f"{known.name} is in production; a canary is another version beside it")
        salt = claim.statement.salt if claim is not None and is_running else ""
        statement = replace(
            self._statement(known, CANARY, by),
            basis_points=round(percent * 100),
            salt=salt or secrets.token_hex(8),
            abort_over=abort_over,
        )
        told = [f"{known.name} answers {statement.basis_points / 100:g} % of the requests that name no version"]
        if not is_running:
            told.append("from when every worker has loaded it")
        if abort_over:
            told.append(f"none any more once it fails more than {abort_over * 100:g} % of them")
        return await self._record(known, statement, _joined([*told, _again(known)]))

    async def shadow(self, model_id: str, version: str, by: str, *, off: bool) -> Done:
        """Has the workers load a version that answers nobody, and compute copies of what they answered with it."""
        known = self._version(model_id, version)
        claim = self._goal(model_id).shadow
        if off:
            if claim is None or claim.version.key != known.key:
                there = f"the shadow is {claim.version.version}" if claim else "there is none"
                raise ActRefused(f"{known.name} is no shadow; {there}")
            return await self._say(known, SHADOW_OFF, by, f"{known.name} is dropped")
        if self._live(model_id) == version:
            raise ActRefused(f"{known.name} is in production; a shadow is another version beside it")
        told = f"{known.name} computes copies of requests once every worker has loaded it, and answers nobody"
        return await self._say(known, SHADOW, by, _joined([told, _again(known)]))

    # ------------------------------------------------------------------ what is known

    def _model(self, model_id: str) -> None:
        models = sorted({version.model_id for version in self._catalogue.versions.values()})
        if model_id not in models:
            there = ", ".join(models[:20]) or "none"
            raise NotKnown(f"no model {model_id[:128]!r} was ever found; there are: {there}")

    def _version(self, model_id: str, version: str) -> KnownVersion:
        """A version that a role can be given to."""
        places = [p for p in self._catalogue.places.values() if (p.model_id, p.version) == (model_id, version)]
        known = self._catalogue.versions.get((model_id, version))
        if known is None:
            for place in places:
                if place.problem:
                    raise ActRefused(f"{model_id} {version} is not servable: {place.problem}")
            self._model(model_id)
            there = ", ".join(sorted(v for m, v in self._catalogue.versions if m == model_id))
            raise NotKnown(f"{model_id} has no version {version[:80]!r}; there are: {there}")
        return known

    def _hindrance(self, known: KnownVersion) -> str:
        """Why a version can't answer, without anybody asking for it again."""
        if known.refused:
            return known.refused
        if known.version in self._goal(known.model_id).retired:
            return "it was retired"
        return "" if self._is_there(known) else "its blobs are gone from the store, and from Redis"

    def _is_there(self, known: KnownVersion) -> bool:
        record = self._promotion.records.get(known.model_id)
        held = record.versions.get(known.version) if record else None
        return bool(known.place) or (held is not None and held.digest.hex() == known.digest)

    def _goal(self, model_id: str) -> Wanted:
        return self._promotion.wanted(model_id)

    def _live(self, model_id: str) -> str:
        record: ModelRecord | None = self._promotion.records.get(model_id)
        return record.live.version if record and record.live else ""

    def _after_retiring(self, known: KnownVersion) -> str:
        """The version that is wanted in production once this one is retired."""
        goal = self._promotion.wanted(known.model_id, self._statement(known, RETIRE, ""))
        return goal.production.version.version if goal.production else ""

    # ------------------------------------------------------------------ on record

    def _statement(self, known: KnownVersion, word: str, by: str) -> Statement:
        said = self._catalogue.statements.get(known.model_id, ())
        # An act is the newest statement when it is made, also where the clock was set back.
        at = max(now(), said[-1].at + timedelta(microseconds=1)) if said else now()
        return Statement(at, *known.key, known.digest, "act", word, by)

    async def _say(self, known: KnownVersion, word: str, by: str, detail: str) -> Done:
        return await self._record(known, self._statement(known, word, by), detail)

    async def _record(self, known: KnownVersion, statement: Statement, detail: str) -> Done:
        if statement.word not in ENDING and not self._is_there(known):
            raise ActRefused(f"the blobs of {known.name} are gone from {known.location}; publish it there again first")
        by = _printable(statement.by)
        statement = replace(statement, by=by)
        act = Act(statement.at, *known.key, known.digest, statement.word, detail, by)
        await to_thread.run_sync(self._catalogue.state, statement, act)
        return Done(statement, detail)


def _printable(by: str) -> str:
    return "".join(c for c in by if c.isprintable())[:MOST_BY]


def _takes_over(known: KnownVersion, live: str) -> str:
    if live == known.version:
        return f"{known.name} answers already"
    until = f"; {live} answers until then" if live else ""
    return f"{known.name} answers once every worker has loaded it{until}"


def _again(known: KnownVersion) -> str:
    return f"it was refused ({known.refused}) and is tried again" if known.refused else ""


def _canary_is(goal: Wanted) -> str:
    return f"the canary is {goal.canary.version.version}" if goal.canary else "there is none"


def _joined(sentences: list[str]) -> str:
    return "; ".join(filter(None, sentences))

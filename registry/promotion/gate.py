"""The gate: recorded requests are replayed on a version before it takes over production, and what changes is ruled on.

    a statement asks for production -> standing: it may go on, is held back, or must be examined first
    recorded answers of what serves -> admitted by the new signature -> answered in a trial -> compared -> ruled on

It holds back statements and not versions: what was said stands for nothing until it is said anew. Examinations are one
at a time and beside everything else, so that no other model waits for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import anyio
import structlog
from anyio import to_thread
from redis.exceptions import RedisError

from contract.admission import Admission
from contract.record import Version
from contract.signature import SignatureError, parse_signature
from contract.trial import MAX_ROWS_BYTES, Answers
from registry.catalogue.catalogue import Catalogue
from registry.catalogue.known import Act, VersionKey, now
from registry.promotion.recorded import Fitting, NoEventLog, fitting, recorded_rows
from registry.promotion.ruling import (
    BLOCK,
    LEAST_ANSWERS,
    OFF,
    Finding,
    GoOn,
    Hold,
    Ruling,
    Terms,
    Unsettled,
    compared,
    rule,
)
from registry.promotion.timeline import ADOPT, DESPITE, ROLLBACK, Claim, Statement, Wanted
from registry.trial import Replay, TrialUnavailable, on_trial
from registry.watch.artifacts import ArtifactKeys

UNASKED = frozenset({ROLLBACK, ADOPT, DESPITE})
"""Acts that the gate is not asked about."""

_RETRY_S = 5.0

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Question:
    """A version that is to take over, and the one that answers until then."""

    claim: Claim
    live: Version

    @property
    def key(self) -> tuple[str, bytes, Statement]:
        """What makes it another question."""
        return self.claim.version.digest, self.live.digest, self.claim.statement


@dataclass(frozen=True, slots=True)
class _Ruled:
    question: Question
    ruling: Ruling

    def covers(self, claim: Claim, live: Version) -> bool:
        """Whether it was ruled on this version beside that one, no earlier than the claim was made."""
        past = self.question
        return (
            (past.claim.version.digest, past.live.digest) == (claim.version.digest, live.digest)
            and claim.statement.at <= past.claim.statement.at
        )  # fmt: skip


def through(goal_of: Callable[[frozenset[Statement]], Wanted], standing: Callable[[Claim], Ruling | None]) -> Wanted:
    """What is wanted once the gate has had its say; `goal_of` is what is wanted without some statements.

    `standing` of a claim to production is None while it is examined: until then what answers goes on.
    """
    held: frozenset[Statement] = frozenset()
    why: dict[str, Hold] = {}
    while True:
        goal = goal_of(held)
        claim = goal.production
        ruling = standing(claim) if claim is not None else GoOn()
        if claim is not None and isinstance(ruling, Hold):
            held |= {claim.statement}
            why.setdefault(claim.version.version, ruling)
            continue
        if claim is not None:
            why.pop(claim.version.version, None)
        if claim is not None and ruling is None:
            beneath = goal_of(held | {claim.statement})
            return replace(goal, canary=beneath.canary, shadow=beneath.shadow, gated=why, is_examined=True)
        return replace(goal, gated=why)


class Gate:
    """Examines versions, and remembers what was ruled on each."""

    def __init__(
        self,
        catalogue: Catalogue,
        artifacts: ArtifactKeys,
        defaults: Terms,
        event_log: str = "",
        replay: Replay | None = None,
    ) -> None:
        """`event_log` is the sink's address; without one, or without trials, nothing can be replayed."""
        self.edition = 0
        """Counts what changes the standing of any claim."""
        self._catalogue = catalogue
        self._artifacts = artifacts
        self._defaults = defaults
        self._event_log = event_log
        self._replay = replay
        self._ruled: dict[VersionKey, _Ruled] = {}
        self._asked: dict[str, Question] = {}
        """Model -> what is to be examined; first come, first served."""
        self._wake = anyio.Event()

    @property
    def hindrance(self) -> str:
        """Why nothing can be replayed here; empty where that is possible."""
        if not self._event_log:
            return "no event log is set to take recorded requests from: MILLSTREAM_EVENT_LOG"
        return "" if self._replay is not None else "no trials are held here"

    def terms(self, model_id: str) -> Terms:
        """What a model asks for: its own terms, or the defaults."""
        return self._catalogue.gates.get(model_id, self._defaults)

    def standing(self, claim: Claim, live: Version | None) -> Ruling | None:
        """What holds for a claim to production now; None where it must be examined first."""
        version, statement = claim.version, claim.statement
        served = self._catalogue.lives.get(version.key)
        if (
            live is None
            or live.digest.hex() == version.digest
            or statement.word in UNASKED
            or (served is not None and served >= statement.at)
        ):
            return GoOn()
        terms = self.terms(version.model_id)
        if terms.policy == OFF or (self.hindrance and terms.policy != BLOCK):
            return GoOn()
        if self.hindrance:
            return Hold(self.hindrance, self.hindrance, again=False)
        ruled = self._ruled.get(version.key)
        return ruled.ruling if ruled is not None and ruled.covers(claim, live) else None

    def ask(self, claim: Claim, live: Version) -> None:
        """Has a version examined, whose artifacts are in Redis; asking again changes nothing."""
        question = Question(claim, live)
        if not self._is_asked(question):
            self._asked[claim.version.model_id] = question
            self._wake.set()

    def withdraw(self, model_id: str) -> None:
        """Nothing of a model is to be examined any more."""
        self._asked.pop(model_id, None)

    def _is_asked(self, question: Question) -> bool:
        asked = self._asked.get(question.claim.version.model_id)
        return asked is not None and asked.key == question.key

    def look_again(self) -> None:
        """Forgets the rulings that may come out otherwise now."""
        self._keep(lambda ruled: not (isinstance(ruled.ruling, Hold) and ruled.ruling.again))

    def forget(self, model_id: str) -> None:
        """Forgets what was ruled on a model: its terms are others now."""
        self.withdraw(model_id)
        self._keep(lambda ruled: ruled.question.claim.version.model_id != model_id)
        self.edition += 1

    def _keep(self, stays: Callable[[_Ruled], bool]) -> None:
        kept = {key: ruled for key, ruled in self._ruled.items() if stays(ruled)}
        if len(kept) < len(self._ruled):
            self._ruled = kept
            self.edition += 1

    async def run(self, on_ruled: Callable[[], None]) -> None:
        """Examines what is asked for, until it is cancelled; `on_ruled` is called after each."""
        while True:
            self._wake = anyio.Event()
            try:
                while await self.examine_next():
                    on_ruled()
            except Exception:  # noqa: BLE001 - whatever it was, such as a full disk, the registry goes on
                _log.exception("a ruling of the gate could not be put on record; it is tried again")
                await anyio.sleep(_RETRY_S)
            else:
                await self._wake.wait()

    async def examine_next(self) -> bool:
        """Examines the version that was asked for first; false where there is none."""
        question = next(iter(self._asked.values()), None)
        if question is None:
            return False
        model_id = question.claim.version.model_id
        terms = self.terms(model_id)
        try:
            seen = await self._see(question, terms)
        except Exception as error:  # noqa: BLE001 - whatever it was, it must not hold up a model for ever
            _log.exception("recorded requests could not be replayed", model_id=model_id)
            seen = Unsettled(f"the replay failed ({type(error).__name__}); the registry's log says more")
        if not self._is_asked(question):
            return True  # something else is wanted by now, or by other terms
        ruling = rule(seen, terms)
        await self._note(question, ruling)
        self._ruled[question.claim.version.key] = _Ruled(question, ruling)
        self.withdraw(model_id)
        self.edition += 1
        return True

    async def _see(self, question: Question, terms: Terms) -> Finding | Unsettled:
        version, live = question.claim.version, question.live
        try:
            digest = live.digest.hex()
            recorded = await recorded_rows(self._event_log, version.model_id, live.version, digest, terms.rows)
            if len(recorded) < LEAST_ANSWERS:
                return Finding(live.version, len(recorded))
            signature, _ = parse_signature(version.signature_json)
            fits = await to_thread.run_sync(fitting, Admission(signature), live.signature.features, recorded)
            answers = await self._answers(question, fits) if fits.then else None
        except (NoEventLog, TrialUnavailable, RedisError, OSError, SignatureError, _NotAnswered) as error:
            return Unsettled(str(error))
        return await to_thread.run_sync(
            compared, live.version, fits.then, answers, terms.tolerance, fits.unfit, fits.why
        )

    async def _answers(self, question: Question, fits: Fitting) -> Answers:
        """What the version answers in a trial. Raises TrialUnavailable and _NotAnswered."""
        assert self._replay is not None
        version = question.claim.version
        rows = fits.rows.SerializeToString()
        if len(rows) > MAX_ROWS_BYTES:
            raise _NotAnswered(f"the recorded requests have {len(rows):,} bytes; ask for fewer: --rows")
        artifacts = on_trial(self._artifacts, self._artifacts.chunked(version))
        verdict, raw = await self._replay(version.signature_json, artifacts, rows)
        if verdict.reason:
            raise _NotAnswered(f"the replay of recorded requests failed: {verdict.reason}")
        try:
            return await to_thread.run_sync(Answers.decode, raw, len(fits.then))
        except ValueError as error:
            raise _NotAnswered(f"the version answered recorded requests with what can't be read: {error}") from None

    async def _note(self, question: Question, ruling: Ruling) -> None:
        """Puts a ruling into the log and the history, where it does not say the same already."""
        version = question.claim.version
        word = "held back" if isinstance(ruling, Hold) else "replayed"
        say = _log.warning if isinstance(ruling, Hold) or ruling.is_warning else _log.info
        say(f"version {word}", model_id=version.model_id, version=version.version, detail=ruling.told)
        past = [act for act in await self._history(version.model_id) if act.version == version.version]
        if not past or (past[-1].act, past[-1].detail) != (word, ruling.told):
            act = Act(now(), *version.key, version.digest, word, ruling.told)
            await to_thread.run_sync(self._catalogue.note, act)

    async def _history(self, model_id: str) -> list[Act]:
        return await to_thread.run_sync(partial(self._catalogue.history, model_id))


class _NotAnswered(Exception):
    """The version did not answer recorded requests; the message says why."""

"""The gate with everything real but the workers: recorded requests of a sink, replayed in trials, before a switch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from hashlib import sha256
from typing import Any

import grpc
import orjson
import pytest
import redis
from anyio import to_thread
from typer.testing import CliRunner

from contract.settings import Settings
from contract.trial import Answers
from millstream.cli import app
from millstream.roles import THREAD_LIMITS
from millstream.trial import trials
from protos import millstream_v1_pb2 as v1
from registry.trial import Trials
from tests.conditions import eventually, eventually_async
from tests.event_entries import EventStream, RunningSink, header, matrix, ok
from tests.registry_run import RegistryRun
from tests.servers import ROOT
from tests.trial_models import dumped, linear, on_trial, signature

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

ROWS = [(float(number), 1.0) for number in range(40)]
"""Version 1.0.0 answers the sum of each."""


class Doubtful:
    """The sum of the row; for a row whose first value is what it is told, something else."""

    def __init__(self, of: Sequence[float], instead: str) -> None:
        self.of = list(of)
        self.instead = instead

    def predict(self, rows: Any) -> Any:
        sums = rows.sum(axis=1)
        for place, first in enumerate(rows[:, 0]):
            if first in self.of:
                sums[place] = eval(self.instead, {"sum": sums[place]})
        return sums


class Waiting:
    """The sum of the row; of many rows only once a file is there."""

    def __init__(self, path: str) -> None:
        self.path = path

    def predict(self, rows: Any) -> Any:
        import os
        import time

        while len(rows) > 2 and not os.path.exists(self.path):  # noqa: PTH110 - as little as can be is pickled
            time.sleep(0.01)
        return rows.sum(axis=1)


@pytest.fixture(scope="module")
async def own() -> AsyncIterator[Trials]:
    async with trials(Settings.read(trial_memory=2**30, trial_seconds=10), THREAD_LIMITS) as own:
        yield own


class House:
    """A registry with a store, and a sink that has recorded what its first version answered."""

    def __init__(self, run: RegistryRun, own: Trials, sink: Callable[[], RunningSink]) -> None:
        self.run = run
        self.own = own
        self.sink = sink
        """Starts it."""

    def publish(self, version: str, model: object, model_id: str = "tried", **other: Any) -> None:
        folder = self.run.folder / "store" / model_id / version
        folder.mkdir(parents=True)
        (folder / "model.joblib").write_bytes(dumped(model))
        (folder / "signature.json").write_bytes(signature(model_id=model_id, version=version, **other))

    async def recorded(self, sink: RunningSink, model_id: str = "tried") -> None:
        """Version 1.0.0 is live, and has answered `ROWS`, and some requests that do not count."""
        digest = self.run.records()[model_id].versions["1.0.0"].digest
        events = []
        for number, row in enumerate(ROWS):
            event = ok(f"r{number}", model_id=model_id, digest=digest, matrix=matrix(row))
            del event.response.predictions[:]
            event.response.predictions.add().outputs["prediction"].number = sum(row)
            events.append(event)
        other = ok("other", model_id=model_id, version="0.9.0", matrix=matrix((0.0, 0.0)))
        stale = ok("stale", model_id=model_id, matrix=matrix((0.0, 0.0)))  # of another 1.0.0
        copy = ok("replayed", model_id=model_id, digest=digest, matrix=matrix((0.0, 0.0)), replay="again")
        with EventStream(self.run.redis_url, self.run.keys.prefix, model_id) as stream:
            stream.append(*events, other, stale, copy, head=header(model_id, digest=digest))
        await to_thread.run_sync(
            partial(eventually, lambda: sink.count(model_id=model_id, replay="*") == len(ROWS) + 3, within=10)
        )

    async def history(self, act: str) -> list[tuple[str, str]]:
        answer = await self.run.calls.History(v1.HistoryRequest())
        return [(entry.version, entry.detail) for entry in answer.entries if entry.act == act]

    async def until(self, version: str, state: str, why: str = "", model_id: str = "tried") -> None:
        async def stands_so() -> bool:
            return (await self.run.shown()).get(f"{model_id} {version}") == (state, why)

        try:
            await eventually_async(stands_so, within=20)
        except AssertionError:
            raise AssertionError(f"it stands otherwise: {await self.run.shown()}") from None

    async def cli(self, *words: str) -> dict[str, Any]:
        command = ["registry", *words, "--registry", self.run.address, "--json"]
        result = await to_thread.run_sync(partial(CliRunner().invoke, app, command))
        assert result.exit_code == 0, result.output
        # Beside it stands what the registry logs in this process.
        answer: dict[str, Any] = orjson.loads([line for line in result.stdout.splitlines() if line[:1] == "{"][-1])
        return answer


@pytest.fixture
def house(
    tmp_path_factory: pytest.TempPathFactory,
    redis_url: str,
    prefix: str,
    redis_client: redis.Redis,
    own: Trials,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("g")  # short: sockets stand in it
    monkeypatch.chdir(folder)
    address = f"unix:{folder}/s.sock"
    settings = {"store_url": str(folder / "store"), "event_log": address, "gate_policy": "block"}
    (folder / "store").mkdir()
    run = RegistryRun(folder, redis_url, prefix, redis_client, **settings)
    with ExitStack() as stack:
        yield House(run, own, lambda: stack.enter_context(RunningSink(redis_url, prefix, folder)))
    run.erase()


def held(share: str, model_id: str = "tried", version: str = "2.0.0") -> str:
    return (
        f"held back by the gate: {share}; `millstream registry promote {model_id} {version} --despite-gate` "
        "puts it into production all the same"
    )


async def test_a_version_that_changes_too_much_is_held_back_until_an_operator_says_otherwise(house: House) -> None:
    house.publish("1.0.0", linear())
    async with house.run.running(house.own, house.own.replay):
        await house.run.until_live({"tried": "1.0.0"})
        await house.recorded(await to_thread.run_sync(house.sink))
        # Ten of forty rows: 25 %.
        house.publish("2.0.0", Doubtful(range(10), "sum + 0.5"))
        await house.run.sync()
        await house.until("2.0.0", "held back", held("25 % of 40 recorded answers change, at most 5 %"))
        told = (
            "of 40 recorded answers of 1.0.0, 10 (25 %) would not be given again; 10 changed; prediction differs by "
            "up to 0.5 (10 changed); at most 5 % may"
        )
        assert await house.history("held back") == [("2.0.0", told)]
        assert house.run.live() == {"tried": "1.0.0"}

        # Terms that allow it would let it pass: they are the model's own from now on, and on record.
        set_to = await house.cli("gate", "tried", "--changed", "20%", "--tolerance", "0.001", "--rows", "30")
        assert (set_to["policy"], set_to["changed"], set_to["rows"], set_to["is_own"]) == ("block", 0.2, 30, True)
        told_terms = "block: at most 20 % of the last 30 recorded answers may change"
        assert await house.history("gate") == [
            (
                "",
                f"{told_terms}, by more than 0.001 where they are numbers",
            )
        ]
        # The last thirty are the same requests but for ten: all have one time, so it is the running number that counts.
        await house.run.until_live({"tried": "2.0.0"})
        assert [version for version, _ in await house.history("replayed")] == ["2.0.0"]

        # A way back asks no gate, and neither does what an operator says despite it; a plain promotion does.
        replayed = await house.history("replayed")
        await house.cli("rollback", "tried")
        await house.run.until_live({"tried": "1.0.0"})
        await house.cli("gate", "tried", "--changed", "0", "--rows", "40")
        await house.cli("promote", "tried", "2.0.0")
        await house.until("2.0.0", "held back", held("25 % of 40 recorded answers change, at most 0 %"))
        (shown,) = [await house.cli("show", "tried")]
        assert (shown["production"], shown["gate"][:5]) == ("1.0.0", "block")
        await house.cli("promote", "tried", "2.0.0", "--despite-gate")
        await house.run.until_live({"tried": "2.0.0"})
        assert await house.history("replayed") == replayed


async def test_a_canary_that_is_held_back_from_production_goes_on_as_canary(house: House) -> None:
    house.publish("1.0.0", linear())
    house.publish("2.0.0", Doubtful([float(row) for row in range(30, 40)], "1 / 0"), status="staging")
    async with house.run.running(house.own, house.own.replay):
        await house.run.until_live({"tried": "1.0.0"})
        await house.recorded(await to_thread.run_sync(house.sink))
        await house.cli("canary", "tried", "2.0.0", "--percent", "20")
        await house.until("2.0.0", "canary", "")
        await house.cli("promote", "tried", "2.0.0")
        fails = "it fails 10 of 40 recorded requests: the model raised ZeroDivisionError: division by zero"
        await house.until("2.0.0", "canary", held(fails))
        routing = house.run.records()["tried"].routing
        assert (routing.production, routing.canary, routing.canary_basis_points) == ("1.0.0", "2.0.0", 2000)
        # Tried again at the next look, it comes out the same: that is said once.
        await house.run.sync()
        await house.until("2.0.0", "canary", held(fails))
        assert len(await house.history("held back")) == 1
        # With a warning it goes on.
        await house.cli("gate", "tried", "--policy", "warn")
        await house.run.until_live({"tried": "2.0.0"})
        ((_, told),) = await house.history("replayed")
        assert told.endswith("it goes on, the policy is to warn")
        # What comes back by a statement that it once answered by is not asked again.
        await house.cli("gate", "tried", "--policy", "block")
        await house.cli("retire", "tried", "2.0.0", "--yes")
        await house.run.until_live({"tried": "1.0.0"})
        assert len(await house.history("replayed")) == 1


async def test_without_an_event_log_that_answers_nothing_takes_over_until_it_does(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.promotion.recorded.READY_S", 0.5)
    house.publish("1.0.0", linear())
    async with house.run.running(house.own, house.own.replay):
        await house.run.until_live({"tried": "1.0.0"})
        narrow = [{"index": 0, "name": "a", "type": "float", "max": 38.0}, {"index": 1, "name": "b", "type": "float"}]
        house.publish("2.0.0", linear(["a", "b"]), expected_features=narrow)
        await house.run.sync()

        async def is_held_for_that() -> bool:
            state, why = (await house.run.shown())["tried 2.0.0"]
            return (state, why) == (
                "held back",
                held(f"the event log at {house.run.settings['event_log']} does not answer"),
            )

        await eventually_async(is_held_for_that, within=20)
        sink = await to_thread.run_sync(house.sink)
        await house.recorded(sink)
        # What is tried again soon need not be fetched again.
        model = (house.run.folder / "store/tried/2.0.0/model.joblib").read_bytes()
        assert house.run.client.exists(house.run.keys.chunk(sha256(model).hexdigest(), 0)) == 1
        await house.run.sync()
        await house.run.until_live({"tried": "2.0.0"})
        told = (
            "of 40 recorded answers of 1.0.0, 1 (2.5 %) would not be given again; 1 not admitted any more; "
            "a: expected a finite number of at most 38.0, got 39.0"
        )
        assert await house.history("replayed") == [("2.0.0", told)]


async def test_other_models_take_over_while_a_replay_goes_on(house: House) -> None:
    go = house.run.folder / "go"
    house.publish("1.0.0", linear())
    house.publish("1.0.0", linear(), "quick")
    async with (
        trials(Settings.read(trial_memory=2**30), THREAD_LIMITS) as beside,
        house.run.running(house.own, beside.replay),
    ):
        await house.run.until_live({"tried": "1.0.0", "quick": "1.0.0"})
        await house.recorded(await to_thread.run_sync(house.sink))
        house.publish("2.0.0", Waiting(str(go)))
        house.publish("2.0.0", linear(), "quick")
        await house.run.sync()
        await house.run.until_live({"tried": "1.0.0", "quick": "2.0.0"})
        await house.until("2.0.0", "waiting", "recorded requests of 1.0.0 are replayed on it")
        go.touch()
        await house.run.until_live({"tried": "2.0.0", "quick": "2.0.0"})
        assert ("2.0.0", "0 recorded answers of 1.0.0 are too few to judge by (20 are enough); it goes on") in (
            await house.history("replayed")
        )


@pytest.mark.parametrize(
    "words", [("--policy", "perhaps"), ("--rows", "0"), ("--tolerance", "-1"), ("--rows", "10001")]
)
async def test_terms_that_make_no_sense_are_refused(house: House, words: tuple[str, ...]) -> None:
    house.publish("1.0.0", linear())
    async with house.run.running():
        command = ["registry", "gate", "tried", *words, "--registry", house.run.address]
        result = await to_thread.run_sync(partial(CliRunner().invoke, app, command))
        assert result.exit_code == 3, result.output
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await house.run.calls.Gate(v1.GateRequest(model_id="nobody"))
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_model_has_terms_of_its_own_until_it_goes_by_the_defaults_again(house: House) -> None:
    house.publish("1.0.0", linear())
    async with house.run.running():
        await house.cli("gate", "tried", "--policy", "off")
    async with house.run.running():  # they outlive the registry
        assert (await house.cli("gate", "tried"))["detail"] == "off: versions take over without a replay"
        reset = await house.cli("gate", "tried", "--reset")
        assert (reset["policy"], reset["is_own"], reset["hindrance"]) == ("block", False, "no trials are held here")
        # Where nothing can be replayed, nothing takes over under terms that ask for it.
        await house.run.until_live({"tried": "1.0.0"})
        house.publish("2.0.0", linear())
        await house.run.sync()
        await house.until("2.0.0", "held back", held("no trials are held here"))


# ---------------------------------------------------------------- the trial's part

ROWS_SENT = v1.Rows(matrix=v1.Matrix(rows=600, float64=matrix(*[(float(row), 1.0) for row in range(600)]).float64))


class Late:
    """Never done with more than two rows."""

    def predict(self, rows: Any) -> Any:
        while len(rows) > 2:
            pass
        return rows[:, 0]


class Liar:
    """Writes what it likes where the trial answers, and ends as if all were well."""

    def __init__(self, said: bytes) -> None:
        self.said = said

    def predict(self, rows: Any) -> Any:
        import os

        if len(rows) > 2:
            os.write(3, self.said)
            os._exit(0)
        return rows[:, 0]


async def test_rows_are_answered_in_batches_and_those_that_fail_are_named(own: Trials) -> None:
    model = Doubtful([7.0, 300.0], "1 / 0")
    verdict, raw = await own.replay(
        signature(), on_trial({"model.joblib": dumped(model)}), ROWS_SENT.SerializeToString()
    )
    answers = Answers.decode(raw, 600)
    assert (verdict.reason, answers.failed) == ("", frozenset({7, 300}))
    assert answers.why == "the model raised ZeroDivisionError: division by zero"
    sums = {row: value for row, value in enumerate(answers.columns["prediction"]) if row not in answers.failed}
    assert sums == {row: row + 1.0 for row in range(600) if row not in (7, 300)}


async def test_a_version_that_is_never_done_with_them_is_late() -> None:
    async with trials(Settings.read(trial_seconds=1, trial_memory=2**30), THREAD_LIMITS) as strict:
        verdict, raw = await strict.replay(
            signature(), on_trial({"model.joblib": dumped(Late())}), ROWS_SENT.SerializeToString()
        )
    # On a busy machine that may be all the time it takes to load.
    assert verdict.reason in ("it was not done with recorded requests within 1 s", "it was not loaded within 1 s")
    assert raw == b""


VERDICT = b'{"reason":"","libraries":{},"warnings":[]}'


@pytest.mark.parametrize("told", [b"", b"\xff" * 100, b"\x08\x01"])
async def test_what_a_version_writes_in_place_of_answers_is_nothing_but_bytes_to_be_checked(
    own: Trials, told: bytes
) -> None:
    said = b"v" + len(VERDICT).to_bytes(4, "big") + VERDICT + told
    verdict, raw = await own.replay(
        signature(), on_trial({"model.joblib": dumped(Liar(said))}), ROWS_SENT.SerializeToString()
    )
    assert (verdict.reason, raw) == ("", told)
    with pytest.raises(ValueError, match="not answers"):
        Answers.decode(raw, 600)


@pytest.fixture
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `millstream trial`."""
    path = tmp_path_factory.mktemp("t") / "t.sock"
    command = [sys.executable, "-m", "millstream", "trial", "--listen", f"unix:{path}"]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=ROOT)
    try:
        eventually(path.exists, within=30)
        yield f"unix:{path}"
    finally:
        server.kill()
        server.wait()


async def test_a_warden_that_listens_elsewhere_replays_too(apart: str) -> None:
    async with trials(Settings.read(trial_address=apart), THREAD_LIMITS) as far:
        for _ in range(2):  # on a line of its own each
            verdict, raw = await far.replay(
                signature(), on_trial({"model.joblib": dumped(linear())}), ROWS_SENT.SerializeToString()
            )
            assert verdict.reason == ""
            answers = Answers.decode(raw, 600).columns["prediction"]
            assert list(answers) == pytest.approx([row + 1.0 for row in range(600)])

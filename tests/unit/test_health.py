"""When a model is said to serve."""

from __future__ import annotations

from pathlib import Path

from contract.presence import Presence
from contract.record import LIVE, LOADING, ModelRecord, Routing, Version
from gateway.health import serving
from gateway.models import engines_of, model_message
from protos import millstream_wire_v1_pb2 as wire

SIGNATURE = b"""{"model_id": "m", "version": "1.0.0", "trained_date": "2024-01-01", "status": "production",
"azure_location": "ai-models", "expected_features": [{"index": 0, "name": "x", "type": "float"}]}"""
DIGEST = bytes(range(32))


def record(state: wire.VersionState = LIVE) -> ModelRecord:
    version = Version.make(DIGEST, state, SIGNATURE, (), "tests")
    return ModelRecord("m", 1, {"1.0.0": version}, Routing(production="1.0.0"))


def worker(name: str, *digests: bytes) -> Presence:
    return Presence("worker", name, loaded=frozenset(digest.hex() for digest in digests))


def test_a_model_serves_at_first_once_every_living_worker_has_it() -> None:
    one = [worker("a", DIGEST), worker("b")]
    both = [worker("a", DIGEST), worker("b", DIGEST)]
    assert (serving({"m": record()}, one, ()), serving({"m": record()}, both, ())) == ({"m": False}, {"m": True})


def test_a_model_that_served_stays_so_while_one_worker_has_it() -> None:
    assert serving({"m": record()}, [worker("a", DIGEST), worker("b")], {"m"}) == {"m": True}


def test_no_model_serves_without_workers() -> None:
    """A server that stays healthy with all its workers dead is the known fault of others."""
    assert serving({"m": record()}, [], {"m"}) == {"m": False}


def test_a_model_that_is_only_loading_does_not_serve() -> None:
    assert serving({"m": record(LOADING)}, [worker("a", DIGEST)], ()) == {"m": False}


def test_what_computes_a_version_is_what_its_workers_say_all_of_it_where_they_differ() -> None:
    workers = [
        Presence("worker", "a", engines={"aa": "treelite 4.8.1 (RandomForestClassifier)", "bb": "sklearn 1.9.1"}),
        Presence("worker", "b", engines={"aa": "sklearn 1.9.1", "bb": "sklearn 1.9.1"}),
    ]
    expected = {"aa": "sklearn 1.9.1; treelite 4.8.1 (RandomForestClassifier)", "bb": "sklearn 1.9.1"}
    assert engines_of(workers) == expected
    shown = model_message(record(LOADING), record().versions["1.0.0"], {DIGEST.hex(): "sklearn 1.9.1"}, whole=False)
    assert [(each.state, each.engine) for each in shown.versions] == [("loading", "sklearn 1.9.1")]
    unloaded = model_message(record(LOADING), record().versions["1.0.0"], {}, whole=False)
    assert [each.engine for each in unloaded.versions] == [""]


def test_the_gateway_loads_no_model_library() -> None:
    """What unpickles must not stand beside callers' connections."""
    import subprocess
    import sys

    code = (
        "import sys, gateway.app; "
        "print([m for m in ('sklearn', 'joblib', 'pandas', 'duckdb', 'azure', 'xgboost') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"

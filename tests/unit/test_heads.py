"""Heads of the event log: what is signed, what is no head, and how they are given away for keeping."""

from __future__ import annotations

import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs

from consumers.audit.heads import ForgedHead, Head, KeepFailed, MalformedHead, model_of, signing_key, time_of
from consumers.sink.database import EventDatabase
from consumers.sink.heading import Heading
from contract.settings import Settings
from contract.trust import KeyUnusable
from millstream.keeping import keeper, kept_heads
from tests.event_logs import MODEL, OTHER, Log
from tests.servers import ROOT

HEAD = Head(
    model_id="churn",
    entry_id="1700000000000-0",
    number=42,
    rows=40,
    chain="ab" * 32,
    erased=1,
    removed_up_to=2,
    removed_chain="cd" * 32,
    at_us=1_700_000_000_000_001,
)
KEY = Ed25519PrivateKey.generate()


def test_a_head_reads_back_what_was_signed() -> None:
    assert Head.decode(HEAD.encode(KEY), KEY.public_key()) == HEAD


def test_a_head_s_name_sorts_by_running_number_and_says_of_which_model_it_is() -> None:
    name = "heads/churn/00000000000000000042-1700000000000001.json"
    assert (HEAD.name, "churn", HEAD.at_us) == (name, model_of(name), time_of(name))
    assert model_of("events/churn/1-2.parquet") is None


@pytest.mark.parametrize(
    "other", [{"number": 43}, {"chain": "00" * 32}, {"model_id": "fraud"}, {"at_us": 1}, {"rows": 41}, {"erased": 0}]
)
def test_a_head_that_says_something_else_is_forged(other: dict[str, int | str]) -> None:
    document = orjson.loads(HEAD.encode(KEY))
    document["head"].update(other)
    with pytest.raises(ForgedHead, match="not what that key signed"):
        Head.decode(orjson.dumps(document), KEY.public_key())


def test_a_head_of_another_key_is_forged() -> None:
    with pytest.raises(ForgedHead, match="signed by another key, ed25519:"):
        Head.decode(HEAD.encode(Ed25519PrivateKey.generate()), KEY.public_key())


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": 2}',
        b'{"format": 1}',
        b'{"format": 1, "head": {}, "key": "", "signature": ""}',
        HEAD.encode(KEY).replace(b'"number": 42', b'"number": "42"'),
        HEAD.encode(KEY).replace(b'"number": 42', b'"number": true'),
        HEAD.encode(KEY).replace(b'"chain": "ab', b'"chain": "zz'),
        HEAD.encode(KEY).replace(b'"signature": "', b'"signature": "*'),
    ],
)
def test_what_is_no_head_is_refused_in_a_sentence(raw: bytes) -> None:
    with pytest.raises((MalformedHead, ForgedHead), match=r"^expected a (signed )?head"):
        Head.decode(raw, KEY.public_key())


def test_the_key_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "sink.key"
    made = signing_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.with_suffix(".pub").read_bytes() == made.public_key().public_bytes_raw()
    assert signing_key(path).private_bytes_raw() == made.private_bytes_raw()


def test_a_place_where_no_key_can_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a file")
    with pytest.raises(KeyUnusable, match=r"keys/sink\.key"):
        signing_key(tmp_path / "keys" / "sink.key")


# ---------------------------------------------------------------- made


class Kept:
    """What was given away, and whether anything is taken."""

    def __init__(self) -> None:
        self.heads: list[Head] = []
        self.away = False

    def __call__(self, name: str, content: bytes | Path) -> None:
        if self.away:
            raise KeepFailed("nobody is there")
        assert isinstance(content, bytes)
        head = Head.decode(content, KEY.public_key())
        assert name == head.name
        self.heads.append(head)

    @property
    def told(self) -> list[tuple[str, int, int]]:
        """Model, number and rows of each, and then they are forgotten."""
        told = [(head.model_id, head.number, head.rows) for head in self.heads]
        self.heads.clear()
        return told


class Looking:
    """A log, and who makes heads of it, step by step."""

    def __init__(self, log: Log, kept: Kept) -> None:
        self.log = log
        self.kept = kept
        self._known: Heading | None = None

    def look(self, *, again: bool = False) -> list[tuple[str, int, int]]:
        """What is given away at a look; `again` after a start."""
        database = EventDatabase(self.log.database)
        try:
            if self._known is None or again:
                self._known = Heading(database, self.kept, KEY, every_s=60)
            self._known._database = database
            self._known.look()
            self._known.send()
        finally:
            database.close()
        return self.kept.told


@pytest.fixture
def looking(tmp_path: Path) -> Looking:
    return Looking(Log(tmp_path), Kept())


def test_only_models_that_moved_get_a_head(looking: Looking) -> None:
    log = looking.log
    log.record(MODEL, entries=1)
    log.record(OTHER, entries=2)
    assert looking.look() == [(OTHER, 6, 6), (MODEL, 3, 3)]
    assert looking.look() == []
    log.record(MODEL, entries=1)
    assert looking.look() == [(MODEL, 6, 6)]


def test_a_head_is_made_at_each_seal_and_tells_where_the_segment_ends(looking: Looking) -> None:
    log = looking.log
    log.record(entries=2)
    [segment] = log.seal()
    log.record(entries=1)
    database = EventDatabase(log.database)
    heading = Heading(database, looking.kept, KEY, every_s=60)
    heading.look()
    heading.send()
    database.close()
    sealed, newest = looking.kept.heads
    assert (sealed.number, sealed.chain, sealed.at_us) == (6, segment.chain_after, segment.sealed_us)
    assert (newest.number, newest.rows) == (10, 10)


def test_heads_wait_for_a_store_that_is_away_the_newest_of_each_model_and_those_of_seals(looking: Looking) -> None:
    log, kept = looking.log, looking.kept
    kept.away = True
    with capture_logs() as logs:
        log.record(entries=1)
        assert looking.look() == []
        log.record(entries=1)
        log.seal()
        assert looking.look() == []
        log.record(entries=1)
        assert looking.look() == []
        kept.away = False
        assert looking.look() == [(MODEL, 6, 6), (MODEL, 10, 10)]
    told = [entry["event"] for entry in logs if "heads" in entry["event"]]
    assert told == [
        "heads of the event log can't be kept; trying again",
        "heads of the event log are kept again",
    ]


def test_after_a_start_the_heads_of_the_last_seals_are_given_away_once_more(looking: Looking) -> None:
    """They may not have arrived; a store replaces nothing."""
    log = looking.log
    log.record(entries=1)
    log.seal()
    assert looking.look() == [(MODEL, 3, 3), (MODEL, 3, 3)]
    assert looking.look(again=True) == [(MODEL, 3, 3), (MODEL, 3, 3)]


def test_an_erasure_gets_a_head_although_nothing_moved(looking: Looking) -> None:
    log = looking.log
    log.record(entries=1)
    looking.look()
    log.erase()
    assert looking.look() == [(MODEL, 3, 3)]


# ---------------------------------------------------------------- kept


def _read(place: str, **how: bool) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    kept_heads(Settings.read(), place, found.__setitem__, **how)  # type: ignore[arg-type]
    return found


def test_a_folder_keeps_the_first_of_a_name_and_is_made_where_it_is_not(tmp_path: Path) -> None:
    place = str(tmp_path / "kept" / "here")
    keep = keeper(Settings.read(), place)
    keep(HEAD.name, b"first")
    keep(HEAD.name, b"second")
    keep(replace(HEAD, at_us=1).name, b"older")
    assert list(_read(place).values()) == [b"older", b"first"]
    assert _read(place, newest=True) == {HEAD.name: b"first"}
    # The folder itself, as it may have been carried elsewhere.
    assert _read(str(tmp_path / "kept" / "here" / "heads"), newest=True) == {HEAD.name.removeprefix("heads/"): b"first"}


def test_a_file_is_kept_like_bytes(tmp_path: Path) -> None:
    segment = tmp_path / "1-2.parquet"
    segment.write_bytes(b"x" * 1000)
    keeper(Settings.read(), str(tmp_path / "kept"))("events/churn/1-2.parquet", segment)
    assert (tmp_path / "kept" / "events" / "churn" / "1-2.parquet").read_bytes() == b"x" * 1000


def test_a_place_that_takes_nothing_fails_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file")
    keep = keeper(Settings.read(), str(tmp_path / "kept"))
    with pytest.raises(KeepFailed, match="kept"):
        keep(HEAD.name, b"head")
    with pytest.raises(KeepFailed, match="can't be read"):
        keeper(Settings.read(), str(tmp_path / "other"))("events/a/1.parquet", tmp_path / "missing.parquet")


def test_a_sink_that_keeps_nothing_in_azure_does_not_load_its_libraries(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; import consumers.sink.sink; from contract.settings import Settings; "
        f"from millstream.keeping import keeper; keeper(Settings.read(), {str(tmp_path)!r})('heads/a/1.json', b'x'); "
        "sys.exit('azure' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False, timeout=60).returncode == 0

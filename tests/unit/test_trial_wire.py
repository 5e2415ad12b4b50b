"""What is said between a registry and a trial: a verdict may have been written by the version on trial."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.trial import LENGTH, MAX_TEXT, MAX_VERDICT_BYTES, TrialFile, TrialHeader, Verdict, in_words


def test_a_header_comes_through_whole() -> None:
    header = TrialHeader(300, (TrialFile("model.joblib", "ab" * 32, 2**33), TrialFile("scaler.joblib", "cd" * 32, 0)))
    raw = header.encode()
    assert LENGTH.unpack(raw[:4]) == (len(raw) - 4,)
    assert TrialHeader.decode(raw[4:]) == header
    assert header.total == 300 + 2**33


def test_a_verdict_comes_through_whole() -> None:
    verdict = Verdict("it is late", 1.5, 2**31, {"sklearn": "1.9.1"}, ("another version",))
    assert Verdict.decode(verdict.encode()[4:]) == verdict


def test_a_verdict_with_too_much_to_say_is_cut_before_it_is_sent() -> None:
    raw = Verdict("ü" * 10**6, warnings=("w" * 10**5,) * 1000).encode()
    assert len(raw) <= MAX_VERDICT_BYTES
    assert len(Verdict.decode(raw[4:]).reason) == MAX_TEXT


def test_what_could_steer_a_terminal_is_taken_out_of_it() -> None:
    verdict = Verdict.decode(orjson.dumps({"reason": "\x1b[2Jgood\nnews\x07", "libraries": {}, "warnings": ["\x9b1m"]}))
    assert (verdict.reason, verdict.warnings) == ("[2Jgood news", ("1m",))


JUNK = st.recursive(st.none() | st.integers(-(2**63), 2**63) | st.text(), st.lists).map(orjson.dumps)


@given(st.binary(max_size=200) | JUNK)
def test_what_is_no_verdict_and_no_header_is_a_value_error(raw: bytes) -> None:
    for kind in (Verdict, TrialHeader):
        with pytest.raises(ValueError):
            kind.decode(raw)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"signature": -1, "files": []},
        {"signature": 1, "files": [{"name": "m", "sha256": "", "size": -5}]},
        {"signature": 1, "files": [{"name": "m"}]},
        {"signature": "many", "files": []},
        {"reason": "", "libraries": [], "warnings": []},
        {"reason": "", "libraries": {}, "warnings": "none"},
    ],
)
def test_json_of_another_shape_is_a_value_error(content: object) -> None:
    raw = orjson.dumps(content)
    for kind in (Verdict, TrialHeader):
        with pytest.raises(ValueError):
            kind.decode(raw)


@pytest.mark.parametrize(("size", "words"), [(0, "0 MiB"), (2**29, "512 MiB"), (2**32, "4.0 GiB")])
def test_sizes_are_said_in_words(size: int, words: str) -> None:
    assert in_words(size) == words

"""What of two runtime records differs so that it can matter."""

from __future__ import annotations

import json
from typing import Any

import pytest

from consumers.replay.runtimes import differences, threads_of

OPENBLAS = {"library": "openblas", "version": "0.3.30", "threads": 1}
OPENMP = {"library": "openmp", "version": None, "threads": 1}


def record(**changes: Any) -> str:
    content = {
        "python": "3.11.9",
        "numpy": "2.4.0",
        "machine": "x86_64",
        "cpu": "Some CPU",
        "system": "Linux glibc 2.36",
        "libraries": {"scikit-learn": "1.9.1", "torch": "2.13.0"},
        "pools": [OPENBLAS, OPENMP],
        "threads": 1,
    }
    return json.dumps(content | changes)


def differing(**changes: Any) -> tuple[str, ...]:
    return differences(record(), record(**changes), ("scikit-learn", "scipy"))


def test_records_of_one_machine_are_alike() -> None:
    assert differing() == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cpu": "Other"}, "cpu: Some CPU then, Other here"),
        ({"numpy": "2.5.0"}, "numpy: 2.4.0 then, 2.5.0 here"),
        ({"threads": 4}, "threads: 1 then, 4 here"),
        ({"libraries": {"scikit-learn": "1.8.0"}}, "scikit-learn: 1.9.1 then, 1.8.0 here"),
        (
            {"pools": [{**OPENBLAS, "version": "0.3.31"}]},
            "BLAS: openblas 0.3.30 with 1 threads then, openblas 0.3.31 with 1 threads here",
        ),
        (
            {"pools": [{**OPENBLAS, "library": "mkl"}]},
            "BLAS: openblas 0.3.30 with 1 threads then, mkl 0.3.30 with 1 threads here",
        ),
        ({"pools": [{**OPENMP, "threads": 2}]}, "OpenMP: openmp with 1 threads then, openmp with 2 threads here"),
    ],
)
def test_what_can_change_the_last_bits_is_named_with_both_sides(changes: dict[str, Any], said: str) -> None:
    assert differing(**changes) == (said,)


@pytest.mark.parametrize(
    "changes",
    [
        {"libraries": {"scikit-learn": "1.9.1", "torch": "2.14.0"}},  # no part of this model
        {"libraries": {"scikit-learn": "1.9.1", "scipy": "1.17"}},  # of which the other knows nothing
        {"pools": [OPENBLAS]},  # fewer models are loaded here
        {"pools": [OPENBLAS, {**OPENBLAS, "version": "0.3.28"}, OPENMP]},  # or more
    ],
)
def test_what_else_a_process_has_loaded_does_not_matter(changes: dict[str, Any]) -> None:
    assert differing(**changes) == ()


@pytest.mark.parametrize("there", [None, "", "{", "[]", "{}"])
def test_without_a_record_nothing_is_alike(there: str | None) -> None:
    assert differences(there, record(), ()) == ("what predicted is not on record",)


def test_a_record_that_was_altered_raises_nothing() -> None:
    odd = record(libraries=[1], pools={"a": 1}, threads="many")
    assert differences(odd, record(), ("scikit-learn",)) == ("threads: many then, 1 here",)
    assert [threads_of(each) for each in (odd, record(threads=10**9), record(threads=-1), record(threads=3), None)] == [
        1,
        256,
        1,
        3,
        1,
    ]

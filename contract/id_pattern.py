"""Patterns for entity ids that come with a model, so that a slow one can't hang a gateway.

Python's `re` tries every way a pattern can match, and an id that nearly matches makes it try them all. The number of
ways is bounded from the parsed pattern before it is ever used.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

MAX_ID_LENGTH = 256
"""Characters of an entity id; longer ones are refused before the pattern is tried."""

DEFAULT_PATTERN = "[A-Za-z0-9_.@-]{1,128}"

MAX_PATTERN_LENGTH = 512

_MAX_WAYS = 1 << 25  # three open-ended repeats one after the other; well under a second

# The parser behind re.compile: without a public name, in every Python from 3.11 on.
_parser: Any = import_module("re._parser")


class IdPatternError(ValueError):
    """A pattern that does not compile or could take forever; the message says which."""


def compile_id_pattern(text: str) -> re.Pattern[str]:
    """The compiled pattern, to be used with `fullmatch`; raises IdPatternError."""
    if len(text) > MAX_PATTERN_LENGTH:
        raise IdPatternError(f"expected a pattern of at most {MAX_PATTERN_LENGTH} characters, got {len(text)}")
    try:
        parsed = _parser.parse(text)
        ways = _ways(parsed)
        pattern = re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise IdPatternError(f"expected a regular expression, got {text!r}: {error}") from None
    if ways >= _MAX_WAYS:
        raise IdPatternError(
            f"{text!r} can take very long on an id that nearly matches; expected no repeat or choice inside another "
            "repeat, no backreference, and bounds such as {1,32} on repeats that follow each other"
        )
    return pattern


def _ways(parsed: Any) -> int:
    """How many ways there are at most to match any id of the longest length, up to _MAX_WAYS."""
    ways = 1
    for operation, argument in parsed:
        name = str(operation)
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            least, most, body = argument
            most = min(int(most), MAX_ID_LENGTH)
            ways *= _power(_ways(body), most) * (max(most - int(least), 0) + 1)
        elif name == "BRANCH":
            ways *= sum(_ways(branch) for branch in argument[1])
        elif name in ("SUBPATTERN", "ASSERT", "ASSERT_NOT"):
            ways *= _ways(argument[-1])
        elif name == "ATOMIC_GROUP":
            ways *= _ways(argument)
        elif name.startswith("GROUPREF"):
            return _MAX_WAYS
        ways = min(ways, _MAX_WAYS)
    return ways


def _power(ways: int, times: int) -> int:
    return ways if ways == 1 else min(ways ** min(times, 64), _MAX_WAYS)

"""JSON as the standard means it: what Python's parser forgives is refused, with line and column.

bytes -> UTF-8 -> depth -> parsed in C -> value; a fault found on the way is located by a scan of its own.

Refused beside syntax errors: a byte order mark, invalid UTF-8, duplicate keys, NaN and Infinity, numbers beyond
float64 (1e400, integers of more than 308 digits), more than 64 nested levels, and halves of surrogate pairs, which no
UTF-8 can carry on.
"""

from __future__ import annotations

import json
import re
from itertools import accumulate
from math import isinf
from typing import NoReturn, TypeAlias

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""A parsed JSON value."""

MAX_DEPTH = 64
"""Nested levels; Python's own limit differs from version to version and ends in a RecursionError."""

MAX_INTEGER_DIGITS = 308
"""Longer integers do not fit in a float64."""

_PLAIN = {
    "Expecting value": "expected a value",
    "Expecting ',' delimiter": "expected a comma or the closing bracket",
    "Expecting ':' delimiter": "expected a colon",
    "Expecting property name enclosed in double quotes": "expected a key in double quotes",
    "Extra data": "expected the end of the text",
}

_STRING = r'"(?:[^"\\]++|\\.)*+"?'  # possessive and with an optional end, so that no text takes quadratic time
_STRINGS = re.compile(_STRING, re.DOTALL)
_LEXEMES = re.compile(rf"{_STRING}|-?Infinity|NaN|-?[0-9][0-9.eE+-]*|[{{}}\[\],:]|[^\S]+|[^\s]", re.DOTALL)
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


class StrictJsonError(ValueError):
    """Text that is not strict JSON; `line` and `column` count from 1, columns in characters."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(f"line {line}, column {column}: {message}")
        self.message = message
        self.line = line
        self.column = column


class _FaultSeenError(ValueError):
    """Raised inside the parser, which knows what is wrong but not where."""


def parse_json(raw: bytes | bytearray | memoryview) -> Json:
    """The value that a strict UTF-8 JSON text holds; raises StrictJsonError with the place of the first fault."""
    content = bytes(raw)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8")
        raise _fault(f"byte 0x{content[error.start]:02x} is not UTF-8", before, len(before)) from None
    if text.startswith("\ufeff"):
        raise StrictJsonError("the text starts with a byte order mark; save it as UTF-8 without one", 1, 1)
    if content.count(b"[") + content.count(b"{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        _locate(text)
    try:
        value: Json = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise StrictJsonError(_plainly(error), error.lineno, error.colno) from None
    except _FaultSeenError:
        _locate(text)
    if _HALF_PAIR.search(text):
        _locate(text, must_find=False)
    return value


def _plainly(error: json.JSONDecodeError) -> str:
    """What the parser says, with what came instead."""
    rest = error.doc[error.pos : error.pos + 20].split("\n", 1)[0]
    came = f"got {rest!r}" if rest else "the text ends here" if error.pos >= len(error.doc) else "the line ends here"
    otherwise = error.msg[0].lower() + error.msg[1:].removesuffix(" at").removesuffix(" starting")
    message = _PLAIN.get(error.msg, otherwise)
    return f"{message}; {came}"


def _depth(text: str) -> int:
    """The deepest level of nesting, without looking into strings."""
    brackets = _STRINGS.sub("", text).encode("ascii", "ignore").translate(None, _NOT_BRACKETS)
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0)


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise _FaultSeenError
    return fields


def _float(digits: str) -> float:
    number = float(digits)
    if isinf(number):
        raise _FaultSeenError
    return number


def _int(digits: str) -> int:
    if len(digits) > MAX_INTEGER_DIGITS and len(digits.lstrip("-")) > MAX_INTEGER_DIGITS:
        raise _FaultSeenError
    return int(digits)


def _constant(_name: str) -> NoReturn:
    raise _FaultSeenError


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_int=_int, parse_constant=_constant)


def _locate(text: str, must_find: bool = True) -> None:
    """Raise for the first fault in `text` that is not one of syntax; slow, and only run where there is one to find."""
    open_objects: list[set[str] | None] = []  # the keys of each open object; None for a list
    at_key = False
    for match in _LEXEMES.finditer(text):
        lexeme = match.group()
        message = ""
        if lexeme[0] == '"':
            message = _string_fault(lexeme, open_objects[-1] if at_key and open_objects else None)
            at_key = False
        elif lexeme in "[{":
            open_objects.append(set() if lexeme == "{" else None)
            at_key = lexeme == "{"
            if len(open_objects) > MAX_DEPTH:
                message = f"nested deeper than {MAX_DEPTH} levels"
        elif lexeme in "]}":
            if open_objects:
                open_objects.pop()
        elif lexeme == ",":
            at_key = bool(open_objects) and open_objects[-1] is not None
        else:
            message = _number_fault(lexeme)
        if message:
            raise _fault(message, text, match.start())
    if must_find:  # pragma: no cover - each fault the parser sees has its place
        raise StrictJsonError("not strict JSON", 1, 1)


def _string_fault(lexeme: str, keys: set[str] | None) -> str:
    try:
        string: str = json.loads(lexeme)
    except ValueError:
        return ""  # the parser never came this far: a fault of syntax, said by itself
    if not string.isascii():
        try:
            string.encode("utf-8")
        except UnicodeEncodeError:
            return "half of a surrogate pair stands alone; it is no character"
    if keys is None:
        return ""
    if string in keys:
        return f"the key {_short(string)} stands twice in one object"
    keys.add(string)
    return ""


def _number_fault(lexeme: str) -> str:
    if lexeme in ("NaN", "Infinity", "-Infinity"):
        return f"{lexeme} is not JSON; a number must be finite"
    if lexeme[0] != "-" and not lexeme[0].isdigit():
        return ""
    digits = lexeme.lstrip("-")
    if digits.isdigit():
        return f"an integer of {len(digits)} digits is too large" if len(digits) > MAX_INTEGER_DIGITS else ""
    try:
        return f"{lexeme[:40]} is too large for a float64" if isinf(float(lexeme)) else ""
    except ValueError:
        return ""


def _short(text: str) -> str:
    return json.dumps(text if len(text) <= 40 else text[:39] + "…", ensure_ascii=False)


def _fault(message: str, text: str, position: int) -> StrictJsonError:
    line = text.count("\n", 0, position) + 1
    return StrictJsonError(message, line, position - text.rfind("\n", 0, position))

"""Bulk files: CSV, JSON lines and Parquet as the requests they hold, line by line, in bounded memory.

    file -> rows -> Request -> the model's own admission -> Line, an entry of the bulk lane or what is wrong with it

Every line gets an id made from the file's content and its number, `f<12 hex digits>-<number>`, unless it brings one:
so a file that is pushed again, whole or from where it stopped, is recognised line by line.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Mapping
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import orjson

from contract.admission import Admission, Draft
from contract.errors import Refused
from contract.request import Native, Request
from contract.signature_parts import Feature
from ingest.bulk_rows import BulkFileUnusable, Text, rows_of
from ingest.cell import typed

REQUEST_ID, ENTITY_ID = "request_id", "entity_id"


class Line(NamedTuple):
    """One request of a file, or why it is none."""

    number: int
    """Line it begins in, from 1 with the header; in Parquet the row, from 1."""
    request_id: str = ""
    body: bytes = b""
    """The `json` field of its entry."""
    body_sha256: bytes = b""
    """Of the request, where its id is its own and so may be another's too."""
    problems: tuple[str, ...] = ()


class BulkFile:
    """A file and the model it is for. Raises BulkFileUnusable.

    `admission_of` gives what requests to a version are checked against, "" for the live one; it raises Refused.
    """

    def __init__(
        self, path: Path, model_id: str, admission_of: Callable[[str], Admission], *, discard_reply: bool = False
    ) -> None:
        self.path = path
        self.model_id = model_id
        self._admission_of = admission_of
        self._discard_reply = discard_reply
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise BulkFileUnusable(f"{path} can't be read: {error.strerror}") from None
        try:
            self.digest = hashlib.file_digest(self._file, "sha256").hexdigest()[:12]
            self._rows = rows_of(self._file, path)
            self._admission = admission_of("")
            self._features = {feature.name: feature for feature in self._admission.features}
            if self._rows.columns:
                self._check_columns(self._rows.columns)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def done(self) -> float:
        """The share that has been read, from 0 to 1."""
        return self._rows.done

    def lines(self, after: int = 0) -> Generator[Line, None, None]:
        """Every line whose number is above `after`. Raises OSError."""
        for number, content, wrong in self._rows(after):
            if wrong:
                yield Line(number, problems=(wrong,))
                continue
            try:
                yield self._json_line(number, content) if isinstance(content, bytes) else self._row(number, content)
            except Refused as refused:
                found = [f"{v.field}: {v.description}" for v in refused.violations] or [refused.message]
                yield Line(number, problems=tuple(found))

    def _check_columns(self, columns: tuple[str, ...]) -> None:
        entity = self._admission.signature.entity
        known = {*self._features, REQUEST_ID, ENTITY_ID}
        wrong = [f"column {name} stands twice" for name in sorted({n for n in columns if columns.count(n) > 1})]
        wrong += [f"column {name[:80]!r} is no feature of {self.model_id}" for name in columns if name not in known]
        if ENTITY_ID in columns and ENTITY_ID not in self._features and entity is None:
            wrong.append(f"column entity_id: {self.model_id} fetches no features")
        stored = ENTITY_ID in columns and entity is not None
        wrong += [
            f"column {feature.name} is missing, and the feature has no default"
            for feature in self._features.values()
            if feature.name not in columns and not feature.has_default and not stored
        ]
        if wrong:
            names = ", ".join(list(self._features)[:50])
            optional = " and ".join((REQUEST_ID, ENTITY_ID)[: 2 if entity else 1])
            wrong.append(f"{self.model_id} takes {names}; {optional} may stand beside them")
            raise BulkFileUnusable("\n".join(f"{self.path}: {each}" for each in wrong))

    def _own(self, number: int) -> str:
        return f"f{self.digest}-{number}"

    def _row(self, number: int, cells: Mapping[str, object] | None) -> Line:
        """A row with a cell for each column. Raises Refused."""
        cells = cells or {}
        features = self._features
        ids = {name: _id(cells.get(name)) for name in (REQUEST_ID, ENTITY_ID) if name not in features}
        request_id, entity_id = ids.get(REQUEST_ID, ""), ids.get(ENTITY_ID, "")
        values: dict[str, Native] = {}
        wrong: list[str] = []
        for name, cell in cells.items():
            feature = features.get(name)
            if feature is None:
                continue
            if _empty(cell) and (entity_id or feature.has_default):
                continue
            try:
                values[name] = feature.accept(_value(cell, feature))
            except ValueError as error:
                wrong.append(f"{name}: {'the cell is empty' if _empty(cell) else error}")
        if wrong:
            return Line(number, problems=tuple(wrong))
        # By name: the version that answers may be another by then, with its features in another order.
        body: dict[str, Any] = {REQUEST_ID: request_id or self._own(number), "features": values}
        if entity_id:
            body[ENTITY_ID] = entity_id
        if self._discard_reply:
            body["discard_reply"] = True
        request = Request(self.model_id, **body)
        self._check(request)
        return Line(number, request.request_id, orjson.dumps(body), request.body_sha256() if request_id else b"")

    def _json_line(self, number: int, raw: bytes) -> Line:
        """A line that is a request already, as in the `json` field of an entry. Raises Refused."""
        request = Request.from_json(raw, self.model_id)
        self._check(request)
        added: dict[str, Any] = {}
        if not request.request_id:
            if b'"request_id"' in raw:
                return Line(number, problems=("request_id: it is empty; leave it out to have one made",))
            added[REQUEST_ID] = self._own(number)
        if self._discard_reply and not request.discard_reply and b'"discard_reply"' not in raw:
            added["discard_reply"] = True
        # Put in front of the text, so that no number is written anew.
        body = orjson.dumps(added)[:-1] + b"," + raw[1:] if added else raw
        own = request.request_id
        return Line(number, own or self._own(number), body, request.body_sha256() if own else b"")

    def _check(self, request: Request) -> None:
        """By the admission that the worker decides by too. Raises Refused."""
        admission = self._admission_of(request.version) if request.version else self._admission
        draft = admission.draft(request)
        if isinstance(draft, Draft) and not draft.wanted:
            draft.complete({})


def _id(cell: object) -> str:
    return "" if _empty(cell) else str(cell)


def _empty(cell: object) -> bool:
    """Whether there is no value: NaN is how tables write a missing number."""
    if isinstance(cell, Text):
        return cell == ""
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _value(cell: object, feature: Feature) -> object:
    if isinstance(cell, Text):
        return typed(cell, feature)
    if isinstance(cell, Decimal):
        return float(cell)
    return None if _empty(cell) else cell

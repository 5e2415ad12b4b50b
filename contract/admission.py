"""Admission: a request against a version's signature, as a pure decision.

Gateway and worker both decide by this and by nothing else. A draft says which stored features are still wanted; the
owner fetches them and completes it. Every violation of a request is found, not the first.
"""

from __future__ import annotations

import math
import re
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from contract.errors import Reason, Refused, Violation, invalid
from contract.request import Native, Request
from contract.signature import Feature, Signature
from contract.signature_parts import MAX_INT
from contract.wire import length_delimited, tag_bytes
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire

STORED_BYTES = 4096
"""A stored value longer than this is no feature."""

FEW_ROWS = 16
"""Fewer are checked value by value: the way by column costs more for each feature than for many rows of it."""

_MATRIX, _COLUMNS = tag_bytes(5), tag_bytes(6)

_FLOAT = re.compile(rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_ONLY_NUMBERS = frozenset((float, int)).issuperset
_INT = re.compile(rb"[+-]?[0-9]{1,16}(?:\.0*)?")


class _Missing:
    """Stands where the caller sent nothing."""


MISSING = _Missing()


class Wanted(NamedTuple):
    """One stored feature that the caller left out: its place in the row and its key in the feature store."""

    place: int
    key: str


class Stored(NamedTuple):
    """What was found for a draft: a feature's index -> its raw value and where it came from."""

    values: Mapping[int, tuple[bytes, wire.Origin]]
    failed: str = ""
    """Why the feature store could not be asked, where it could not."""


class Admitted(NamedTuple):
    """`n` rows that fit the signature."""

    rows_field: bytes
    """They as an Entry holds them: its field `matrix` or `columns`, serialized."""
    n: int
    hydrated: Sequence[tuple[int, wire.Origin]] = ()
    degraded: bool = False
    packed: bool = False

    @property
    def rows(self) -> v1.Matrix | v1.Columns:
        """The rows as a message, made anew."""
        entry = wire.Entry.FromString(self.rows_field)
        return entry.matrix if entry.WhichOneof("rows") == "matrix" else entry.columns


@dataclass(frozen=True, slots=True)
class Draft:
    """One row in which some features are still missing."""

    admission: Admission
    values: list[object]
    wanted: tuple[Wanted, ...]
    absent: tuple[int, ...]
    """Missing and not stored anywhere: only a default can help."""
    entity_id: str

    @property
    def takes_no_fallback(self) -> bool:
        """Whether the signature says to refuse while the feature store is late or gone."""
        entity = self.admission.signature.entity
        return entity is not None and entity.on_store_error == "refuse"

    def complete(self, stored: Mapping[int, tuple[bytes, wire.Origin]], *, store_failed: str = "") -> Admitted:
        """The row with what was stored, then defaults, filled in.

        `stored` maps a feature's index to its raw value and where it came from; `store_failed` says why the store
        could not be asked, where it could not. Raises Refused with all violations.
        """
        admission = self.admission
        refuses = bool(store_failed) and self.takes_no_fallback
        hydrated: list[tuple[int, wire.Origin]] = []
        wrong: list[Violation] = []
        for want in self.wanted:
            feature = admission.features[want.place]
            if want.place in stored and not refuses:
                raw, origin = stored[want.place]
                try:
                    self.values[want.place] = feature.accept(_from_store(feature, raw))
                    hydrated.append((want.place, origin))
                except ValueError as error:
                    place = f"of {self.entity_id} in the snapshot" if origin == wire.FILE else f"at {want.key}"
                    wrong.append(Violation(feature.name, f"the stored value {place} is unusable: {error}"))
            elif feature.has_default and not refuses:
                self.values[want.place] = feature.accept(feature.default)
                hydrated.append((want.place, wire.DEFAULT))
            elif store_failed:
                why = "and the model takes no other value" if refuses else "which has no default"
                raise Refused(
                    Reason.FEATURES_UNAVAILABLE,
                    f"the feature store could not be asked for {feature.name!r}, {why}: {store_failed}",
                    retry_after_s=0.1,
                )
            else:
                wrong.append(
                    Violation(feature.name, f"not sent, nothing is stored at {want.key}, and there is no default")
                )
        for index in self.absent:
            feature = admission.features[index]
            if feature.has_default:
                self.values[index] = feature.accept(feature.default)
                hydrated.append((index, wire.DEFAULT))
            else:
                wrong.append(Violation(feature.name, admission.absence(self.entity_id)))
        if wrong:
            raise invalid(wrong)
        return admission.one(self.values, hydrated, degraded=bool(store_failed))


class Admission:
    """What requests to one version are checked against; compiled once per version."""

    def __init__(self, signature: Signature, *, max_rows: int = 100_000) -> None:
        self.signature = signature
        self.features = signature.features
        self.width = len(signature.features)
        self.max_rows = max_rows
        self.matrix = signature.matrix
        self._pack = struct.Struct(f"<{self.width}d").pack if self.matrix else None
        self._any_number = all(
            feature.type == "float" and feature.categories is None and feature.min is None and feature.max is None
            for feature in self.features
        )
        """Whether a row of finite numbers is right whatever they are."""
        self._limits = [_limits(feature) for feature in self.features]
        one_row = _rows_field(v1.Matrix(rows=1, float64=bytes(8 * self.width)))
        self._one_row = one_row[: len(one_row) - 8 * self.width]
        """What stands before the numbers of one row."""
        self._nullable = any(feature.nullable for feature in self.features)
        self._index = {feature.name: feature.index for feature in self.features}
        self._names = ", ".join(feature.name for feature in self.features[:20]) + (", …" if self.width > 20 else "")

    def draft(self, request: Request) -> Admitted | Draft:
        """The rows of a request, or a draft of its one row where features are to be fetched or defaulted.

        Raises Refused with all violations.
        """
        _, _, inputs, features, packed, rows, entity_id, request_id, _, replay = request
        wrong = request.check_ids() if request_id or entity_id or replay else []
        if entity_id:
            wrong += self._check_entity(entity_id)
        if inputs is not None and features is None and packed is None and rows is None:
            return self._by_position(inputs, wrong)
        forms = [
            name
            for name, form in (
                ("inputs", inputs),
                ("features", features),
                ("rows", packed if packed is not None else rows),
            )
            if form is not None
        ]
        if len(forms) > 1:
            wrong.append(Violation(forms[1], f"send one of inputs, features and rows; {' and '.join(forms)} came"))
            raise invalid(wrong)
        if packed is not None:
            return self._by_packed(packed, wrong)
        if rows is not None:
            return self._by_rows(rows, wrong)
        if features is None and not entity_id:
            wrong.append(Violation("inputs", f"nothing was sent; expected {self._names} by position or by name"))
            raise invalid(wrong)
        return self._by_name(features or {}, entity_id, wrong)

    def absence(self, entity_id: str) -> str:
        """Why a feature that was not sent can't be done without."""
        if self.signature.entity and not entity_id:
            name = self.signature.entity.name
            return f"not sent and has no default; send it, or an entity_id ({name}) to have it fetched"
        return "not sent and has no default"

    def one(self, values: Sequence[object], hydrated: Sequence[tuple[int, wire.Origin]], *, degraded: bool) -> Admitted:
        """One checked row, packed."""
        if self._pack:
            if self._nullable:
                values = [math.nan if value is None else value for value in values]
            return Admitted(self._one_row + self._pack(*values), 1, hydrated, degraded)
        return Admitted(self._columns([(value,) for value in values], 1), 1, hydrated, degraded)

    def _by_position(self, inputs: Sequence[Native], wrong: list[Violation]) -> Admitted:
        if len(inputs) != self.width:
            wrong.append(Violation("inputs", f"expected {self.width} values ({self._names}), got {len(inputs)}"))
            raise invalid(wrong)
        if self._any_number and not wrong and _ONLY_NUMBERS(map(type, inputs)):
            try:
                if math.isfinite(sum(inputs)):  # type: ignore[arg-type]  # each of them is one
                    return self.one(inputs, (), degraded=False)
            except OverflowError:
                pass  # an integer beyond all floats
        values: list[object] = []
        for place, item in enumerate(inputs):
            kind, low, high = self._limits[place]
            if type(item) is kind and low <= item <= high:  # type: ignore[operator]  # a number
                values.append(item)
                continue
            feature = self.features[place]
            try:
                values.append(feature.accept(item))
            except ValueError as error:
                wrong.append(Violation(feature.name, str(error)))
        if wrong:
            raise invalid(wrong)
        return self.one(values, (), degraded=False)

    def _by_name(self, named: Mapping[str, Native], entity_id: str, wrong: list[Violation]) -> Admitted | Draft:
        values: list[object] = [MISSING] * self.width
        for name, item in named.items():
            index = self._index.get(name)
            if index is None:
                wrong.append(Violation(name[:200], f"unknown feature; {self.signature.model_id} has {self._names}"))
                continue
            try:
                values[index] = self.features[index].accept(item)
            except ValueError as error:
                values[index] = None
                wrong.append(Violation(name, str(error)))
        missing = [index for index, value in enumerate(values) if value is MISSING]
        if not missing and not wrong:
            return self.one(values, (), degraded=False)
        entity = self.signature.entity
        wanted: tuple[Wanted, ...] = ()
        if entity and entity_id and not wrong:
            wanted = tuple(Wanted(index, entity.store_key(entity_id, self.features[index])) for index in missing)
            missing = []
        if wrong:
            if not entity_id:
                wrong += [
                    Violation(self.features[index].name, self.absence(entity_id))
                    for index in missing
                    if not self.features[index].has_default
                ]
            raise invalid(wrong)
        return Draft(self, values, wanted, tuple(missing), entity_id)

    def _by_packed(self, packed: v1.Rows, wrong: list[Violation]) -> Admitted:
        form = packed.WhichOneof("form")
        if form is None:
            wrong.append(Violation("rows", "expected a matrix or columns, got neither"))
        elif form == "matrix" and not self.matrix:
            wrong.append(Violation("rows", "this model has string features: send columns, one per feature"))
        elif form == "matrix":
            return self._by_matrix(packed.matrix, wrong)
        else:
            return self._by_columns(packed.columns, wrong)
        raise invalid(wrong)

    def _bound(self, n: int, wrong: list[Violation]) -> None:
        if n == 0:
            raise invalid([*wrong, Violation("rows", "expected at least one row, got none")])
        if n > self.max_rows:
            text = f"expected at most {self.max_rows} rows in one request, got {n}"
            raise invalid([*wrong, Violation("rows", text)])

    def _by_matrix(self, matrix: v1.Matrix, wrong: list[Violation]) -> Admitted:
        self._bound(matrix.rows, wrong)
        size = matrix.rows * self.width * 8
        if len(matrix.float64) != size:
            text = f"expected {matrix.rows} rows of {self.width} float64, {size} bytes, got {len(matrix.float64)}"
            raise invalid([*wrong, Violation("rows.matrix.float64", text)])
        table = np.frombuffer(matrix.float64, dtype="<f8").reshape(matrix.rows, self.width)
        for feature in self.features:
            self._check_column(feature, table[:, feature.index], wrong)
        if wrong:
            raise invalid(wrong)
        return Admitted(_rows_field(matrix), matrix.rows, packed=True)

    def _check_column(self, feature: Feature, column: npt.NDArray[np.float64], wrong: list[Violation]) -> None:
        """Finds the first row that breaks a rule and counts the rest, without a loop over rows."""
        bad = ~np.isfinite(column)
        if feature.type == "int":
            bad |= (column != np.trunc(column)) | (np.abs(column) > MAX_INT)
        elif feature.type == "bool":
            bad |= (column != 0) & (column != 1)
        if feature.min is not None:
            bad |= column < feature.min
        if feature.max is not None:
            bad |= column > feature.max
        if feature.categories is not None:
            bad |= ~np.isin(column, np.asarray(feature.categories, dtype=np.float64))
        if feature.nullable:
            bad &= ~np.isnan(column)
        if bad.any():
            row = int(np.argmax(bad))
            rows = int(np.count_nonzero(bad))
            item = float(column[row])
            reason = f"expected {feature.expected}, got {item}"
            wrong.append(
                Violation(f"rows[{row}].{feature.name}", reason + (f" ({rows} rows in all)" if rows > 1 else ""))
            )

    def _by_columns(self, columns: v1.Columns, wrong: list[Violation]) -> Admitted:
        self._bound(columns.rows, wrong)
        if len(columns.columns) != self.width:
            text = f"expected {self.width} columns ({self._names}), got {len(columns.columns)}"
            raise invalid([*wrong, Violation("rows.columns", text)])
        narrow = False
        table: list[Sequence[Native]] = []
        for feature, column in zip(self.features, columns.columns, strict=True):
            kind = column.WhichOneof("kind")
            items: list[Native] = getattr(column, kind).values[:] if kind else [None] * columns.rows
            if len(items) != columns.rows:
                wrong.append(Violation(feature.name, f"expected {columns.rows} values, got {len(items)}"))
                narrow = True
                continue
            for row in column.nulls:
                if row < len(items):
                    items[row] = None
            table.append(items)
        if narrow:
            raise invalid(wrong)
        fitting = None if wrong else self._fitting(table, columns.rows)
        return fitting or self._checked([list(row) for row in zip(*table, strict=True)], wrong)

    def _by_rows(self, rows: Sequence[Sequence[Native]], wrong: list[Violation]) -> Admitted:
        self._bound(len(rows), wrong)
        narrow = [
            Violation(f"rows[{number}]", f"expected {self.width} values ({self._names}), got {len(row)}")
            for number, row in enumerate(rows)
            if len(row) != self.width
        ][:100]
        if narrow:
            raise invalid(wrong + narrow)
        fitting = None if wrong else self._fitting(list(zip(*rows, strict=True)), len(rows))
        return fitting or self._checked(rows, wrong)

    def _fitting(self, table: Sequence[Sequence[Native]], n: int) -> Admitted | None:
        """Rows by column where all of them fit, without a loop over cells; None where one may not, or is null."""
        if n < FEW_ROWS:
            return None
        columns: list[Any] = []
        for feature, items in zip(self.features, table, strict=True):
            column = self._fitting_column(feature, items)
            if column is None:
                return None
            columns.append(column)
        if self.matrix:
            matrix = v1.Matrix(rows=n, float64=np.stack(columns, axis=1).tobytes())
            return Admitted(_rows_field(matrix), n, packed=True)
        return Admitted(
            self._columns([_plain_list(*each) for each in zip(self.features, columns, strict=True)], n), n, packed=True
        )

    def _fitting_column(
        self, feature: Feature, items: Sequence[Native]
    ) -> Sequence[Native] | npt.NDArray[np.float64] | None:
        kinds = set(map(type, items))
        numbers: Any = items
        try:
            if feature.type == "string":
                if kinds == {str}:
                    for text in set(items):
                        feature.accept(text)
                    return items
                return None
            if kinds != {bool} if feature.type == "bool" else not _ONLY_NUMBERS(kinds):
                return None
            # Compared before they are floats, which do not tell 2**53 and the next integer apart.
            if feature.type == "int" and not -MAX_INT <= min(numbers) <= max(numbers) <= MAX_INT:
                return None
            column = np.array(items, dtype="<f8")
            if feature.type == "int":
                column += 0.0  # an int is never -0.0
        except (ValueError, OverflowError):
            return None
        wrong: list[Violation] = []
        self._check_column(feature, column, wrong)
        return None if wrong or not np.isfinite(column).all() else column

    def _checked(self, rows: Sequence[Sequence[Native]], wrong: list[Violation]) -> Admitted:
        table: list[list[Native]] = []
        for number, row in enumerate(rows):
            out: list[Native] = []
            for feature, item in zip(self.features, row, strict=True):
                try:
                    out.append(feature.accept(item))
                except ValueError as error:
                    wrong.append(Violation(f"rows[{number}].{feature.name}", str(error)))
                    out.append(None)
            table.append(out)
            if len(wrong) >= 100:
                break
        if wrong:
            raise invalid(wrong)
        if self.matrix:
            packed = np.array(table, dtype="<f8").tobytes()
            return Admitted(_rows_field(v1.Matrix(rows=len(table), float64=packed)), len(table), packed=True)
        return Admitted(self._columns(list(zip(*table, strict=True)), len(table)), len(table), packed=True)

    def _columns(self, table: Sequence[Sequence[Any]], n: int) -> bytes:
        """Checked values by feature as one packed list each; a null string is an empty one with its row noted."""
        out = v1.Columns(rows=n)
        for feature, items in zip(self.features, table, strict=True):
            column = out.columns.add()
            if feature.type == "float":
                column.doubles.values.extend(math.nan if item is None else item for item in items)
            elif feature.type == "int":
                column.integers.values.extend(items)
            elif feature.type == "bool":
                column.booleans.values.extend(items)
            else:
                column.strings.values.extend(item or "" for item in items)
                column.nulls.extend(row for row, item in enumerate(items) if item is None)
        return _rows_field(out)

    def _check_entity(self, entity_id: str) -> list[Violation]:
        entity = self.signature.entity
        if entity is None:
            return [Violation("entity_id", f"{self.signature.model_id} fetches no features: send all of them")]
        if not entity.matches(entity_id):
            return [Violation("entity_id", f"{entity_id[:40]!r} does not match {entity.pattern}")]
        return []


def _rows_field(rows: v1.Matrix | v1.Columns) -> bytes:
    return length_delimited(_MATRIX if isinstance(rows, v1.Matrix) else _COLUMNS, rows.SerializeToString())


def _limits(feature: Feature) -> tuple[type | None, float, float]:
    """A Python type, and between what two values each of that type is taken as it is; None for no type."""
    if feature.categories is not None or feature.type not in ("float", "int"):
        return None, 0, 0
    kind, most = (int, MAX_INT) if feature.type == "int" else (float, sys.float_info.max)
    low = -most if feature.min is None else max(feature.min, -most)
    high = most if feature.max is None else min(feature.max, most)
    # Numbers of one type are compared in half the time.
    return kind, kind(low) if kind(low) == low else low, kind(high) if kind(high) == high else high


def _plain_list(feature: Feature, column: Sequence[object] | npt.NDArray[np.float64]) -> Sequence[object]:
    """A checked column in the feature's own Python type."""
    if not isinstance(column, np.ndarray):
        return column
    whole = {"int": np.int64, "bool": np.bool_}.get(feature.type)
    values: list[object] = (column if whole is None else column.astype(whole)).tolist()
    return values


def _from_store(feature: Feature, raw: bytes) -> Native:
    """A stored value as the feature's type. Raises ValueError."""
    shown = repr(raw[:40])[1:]
    if len(raw) > STORED_BYTES:
        raise ValueError(f"it has {len(raw)} bytes")
    if feature.type == "string":
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise ValueError(f"expected UTF-8, got {shown}") from None
    if feature.type == "bool":
        if raw not in (b"true", b"false"):
            raise ValueError(f"expected true or false, got {shown}")
        return raw == b"true"
    if feature.type == "int":
        if not _INT.fullmatch(raw):
            raise ValueError(f"expected an int, got {shown}")
        return int(raw.partition(b".")[0])
    if not _FLOAT.fullmatch(raw):
        raise ValueError(f"expected a float, got {shown}")
    return float(raw)

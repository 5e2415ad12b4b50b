"""Text from a command line, a prompt or a file as the values a model's features take."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from contract.request import Native, native
from contract.signature_parts import Feature
from ingest.cell import typed as typed
from millstream.cli.errors import REFUSED, CommandFailed
from protos import millstream_v1_pb2 as v1

MOST_FAULTS = 20


def features_of(model: v1.Model) -> list[Feature]:
    """The features of a model, as its gateway describes them, in index order."""
    return [
        Feature(
            index=spec.index,
            name=spec.name,
            type=spec.type,  # type: ignore[arg-type]
            has_default=not spec.required,
            default=native(spec.default),
            nullable=spec.nullable,
            categories=tuple(native(category) for category in spec.categories) or None,
            min=_bound(spec, "min"),
            max=_bound(spec, "max"),
            example=native(spec.example) if spec.HasField("example") else None,
            unit=spec.unit,
            description=spec.description,
        )
        for spec in model.features
    ]


def _bound(spec: v1.FeatureSpec, name: Literal["min", "max"]) -> float | int | None:
    if not spec.HasField(name):
        return None
    bound: float = getattr(spec, name)
    return int(bound) if spec.type == "int" and bound.is_integer() else bound


def inputs_of(texts: Sequence[str], features: Sequence[Feature]) -> list[Native]:
    """Values by position. Raises CommandFailed naming everything that is wrong."""
    if len(texts) != len(features):
        names = " ".join(feature.name.upper() for feature in features[:20])
        raise CommandFailed(f"expected {len(features)} values ({names}), got {len(texts)}", REFUSED)
    values, faults = [], []
    for text, feature in zip(texts, features, strict=True):
        try:
            values.append(typed(text, feature))
        except ValueError as error:
            faults.append(f"{feature.name}: {error}")
    _refuse(faults)
    return values


def named_of(pairs: Sequence[str], features: Sequence[Feature]) -> dict[str, Native]:
    """Values by name, from NAME=VALUE texts. Raises CommandFailed naming everything that is wrong."""
    known = {feature.name: feature for feature in features}
    values: dict[str, Native] = {}
    faults = []
    for pair in pairs:
        # A name may hold a "=" itself: the longest known one wins.
        name = max((each for each in known if pair.startswith(f"{each}=")), key=len, default=pair.partition("=")[0])
        if "=" not in pair:
            faults.append(f"{pair!r}: expected NAME=VALUE")
        elif name not in known:
            faults.append(f"{name}: unknown feature; there is: {', '.join(list(known)[:20])}")
        elif name in values:
            faults.append(f"{name}: given twice")
        else:
            try:
                values[name] = typed(pair[len(name) + 1 :], known[name])
            except ValueError as error:
                faults.append(f"{name}: {error}")
    _refuse(faults)
    return values


def read_rows(
    path: Path, features: Sequence[Feature], chunk: int
) -> Iterator[tuple[int, list[list[Native]], list[str]]]:
    """The rows of a CSV file with a header, or of a file of JSON lines, `chunk` at a time, in index order.

    Yields (number of the first row from 1, rows, names of columns that no feature has). What is missing takes the
    feature's default. Raises CommandFailed with file and line.
    """
    try:
        # utf-8-sig: what Excel writes starts with a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as file:
            start = file.read(1)
            file.seek(0)
            source = _json_rows(file) if start in ("{", "[") else _csv_rows(file)
            first = 1
            while part := list(islice(source, chunk)):
                rows, ignored = _ordered(path, part, features)
                yield first, rows, ignored
                first += len(part)
    except OSError as error:
        raise CommandFailed(f"{path} can't be read: {error.strerror}", REFUSED) from None
    except UnicodeDecodeError as error:
        raise CommandFailed(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8", REFUSED) from None
    except (csv.Error, ValueError) as error:
        raise CommandFailed(f"{path}: {error}", REFUSED) from None
    if first == 1:
        raise CommandFailed(f"{path} has no rows", REFUSED)


Row = tuple[int, dict[str, Any] | list[Any]]
"""A line's number, and its cells: text by name, JSON by name, or JSON by position."""


def _csv_rows(file: Any) -> Iterator[Row]:
    reader = csv.reader(file, strict=True)
    names = next(reader, [])
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"the header names {', '.join(twice)} twice")
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(names):
            raise ValueError(f"line {reader.line_num}: expected {len(names)} cells as in the header, got {len(cells)}")
        yield reader.line_num, {name.strip(): _Text(cell) for name, cell in zip(names, cells, strict=True)}


def _json_rows(file: Any) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number}: expected one JSON object or list a line: {error}") from None
        if not isinstance(row, dict | list):
            raise ValueError(f"line {number}: expected a JSON object or list, got {str(row)[:40]}")
        yield number, row


class _Text(str):
    """A cell that is text still, to be read by its feature's type."""


def _ordered(path: Path, part: list[Row], features: Sequence[Feature]) -> tuple[list[list[Native]], list[str]]:
    rows: list[list[Native]] = []
    faults: list[str] = []
    ignored: dict[str, None] = {}
    known = {feature.name for feature in features}
    for line, cells in part:
        if isinstance(cells, list):
            if len(cells) != len(features):
                faults.append(f"{path}, line {line}: expected {len(features)} values, got {len(cells)}")
            rows.append(cells)
            continue
        ignored.update(dict.fromkeys(name for name in cells if name not in known))
        row: list[Native] = []
        for feature in features:
            cell = cells.get(feature.name, _Text(""))
            try:
                row.append(_cell(cell, feature))
            except ValueError as error:
                what = "missing" if feature.name not in cells else str(error)
                faults.append(f"{path}, line {line}, {feature.name}: {what}")
        rows.append(row)
        if len(faults) >= MOST_FAULTS:
            break
    _refuse(faults)
    return rows, list(ignored)


def _cell(cell: Any, feature: Feature) -> Native:
    if not isinstance(cell, _Text):
        return cell  # type: ignore[no-any-return]
    if cell == "" and feature.has_default:
        return feature.default
    return typed(str(cell), feature)


def _refuse(faults: list[str]) -> None:
    if faults:
        more = [f"… and more than {MOST_FAULTS}"] if len(faults) > MOST_FAULTS else []
        raise CommandFailed("\n".join(faults[:MOST_FAULTS] + more), REFUSED)

"""Events as columns: what one transaction of the sink inserts.

    stream entry (n, pb)  ->  Link: the bytes of each event, and how it is laid out
    many of them joined   ->  a numpy array for each column  ->  INSERT

Column by column and not row by row, since that is what costs least in Python and what DuckDB reads fastest; and those
of all events of a commit that are laid out alike at once, without parsing them.

From a row alone the event's bytes can be built again (consumers/audit/rebuild.py). Where its columns do not give every
byte, `exact` has them all.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import numpy as np
from google.protobuf.message import DecodeError

from consumers.audit import chain
from consumers.audit.canonical import PREDICTED, join_header
from consumers.sink.exact import FIRST_US, LAST_US
from consumers.sink.layout import Layout, Layouts
from consumers.sink.parsed import Column, Columns, Names, origins, parsed_columns, texts
from consumers.sink.pieces import Pieces, cut
from consumers.sink.schema import COLUMNS, TIMES
from consumers.sink.sliced import Sliced
from protos import millstream_wire_v1_pb2 as wire

_TYPES = {
    column.name: {"integer": np.int64, "time": np.int64, "boolean": np.bool_}.get(column.form, np.object_)
    for column in COLUMNS
}
_TYPES["error_code"] = np.object_  # None where there is no error

_FEW = 6
"""So many events that are laid out alike are parsed for less than their block costs."""


def no_names(_model_id: str, _digest: bytes) -> Sequence[str]:
    """For where no catalogue can be asked."""
    return ()


class MalformedLink(ValueError):
    """An entry of an events stream that can't be read; the message says what was expected and what came."""


@dataclass(frozen=True, slots=True)
class Link:
    """One entry of an events stream: the events of one call of the exit, of which columns can be made."""

    model_id: str
    entry_id: str
    number: int
    """The model's running number after this entry."""
    size: int
    """Bytes it had in the stream."""
    header: bytes
    """As it stood in the stream."""
    head: wire.Header
    pieces: tuple[bytes, ...]
    """Each event, as it stood in the stream."""
    parsed: tuple[Layout | wire.Event, ...]
    """How each is laid out, or what was parsed of it."""
    digests: tuple[bytes, ...]
    """Of each event, as it stood in the stream."""
    numbers: Sequence[int]
    names: Names = field(compare=False)
    _columns: dict[str, Column] = field(default_factory=dict, compare=False, repr=False)

    @property
    def events(self) -> int:
        return len(self.pieces)

    def column(self, name: str) -> Column:
        """One value for each event, None where it has none."""
        if not self._columns:
            self._columns.update(_table([self]))
        found = self._columns.get(name)
        return np.full(self.events, None, dtype=object) if found is None else found

    @classmethod
    def decode(cls, model_id: str, entry_id: str, fields: Mapping[bytes, bytes], names: Names = no_names) -> Self:
        """Raises MalformedLink."""
        number = read_number(fields)
        if number is None:
            raise MalformedLink(f"expected a running number in field n, got {fields.get(b'n', b'nothing')[:40]!r}")
        raw = fields.get(b"pb")
        if raw is None:
            raise MalformedLink("expected an EventBatch in field pb, got no such field")
        try:
            pieces = cut(raw)
            head = wire.Header.FromString(pieces.header)
            parsed = _parsed(model_id, head, pieces) if pieces.plain else tuple(wire.EventBatch.FromString(raw).events)
        except (DecodeError, ValueError):
            raise MalformedLink(f"expected an EventBatch in field pb, got {len(raw)} bytes that are none") from None
        events = pieces.events
        if not parsed:
            raise MalformedLink("expected at least one event in field pb, got none")
        if len(events) != len(parsed):
            text = f"expected the bytes of {len(parsed)} events in field pb, found those of {len(events)}"
            raise MalformedLink(text)
        digests = tuple([chain.digest(piece) for piece in events])
        numbers = range(number - len(events) + 1, number + 1)
        return cls(
            model_id, entry_id, number, len(raw), pieces.header, head, tuple(events), parsed, digests, numbers, names
        )

    def without(self, rows: frozenset[int]) -> Self:
        """The same with these of its events left out."""
        keep = [row for row in range(self.events) if row not in rows]
        return replace(
            self,
            pieces=tuple([self.pieces[row] for row in keep]),
            parsed=tuple([self.parsed[row] for row in keep]),
            digests=tuple([self.digests[row] for row in keep]),
            numbers=[self.numbers[row] for row in keep],
            _columns={},
        )

    def numbered(self, first: int) -> Self:
        """The same with its events numbered on from `first`."""
        return replace(self, numbers=range(first, first + self.events), _columns={})

    def after(self, before: bytes) -> bytes:
        """The chain's value after it."""
        return chain.link(before, self.entry_id, self.header, zip(self.numbers, self.digests, strict=True))


_LAYOUTS: dict[str, Layouts] = {}
"""By model. They are found again whatever reads the log in this process."""
_MOST_MODELS = 256


def _parsed(model_id: str, head: wire.Header, pieces: Pieces) -> tuple[Layout | wire.Event, ...]:
    """How each event is laid out, or the event. Raises DecodeError."""
    layouts = _LAYOUTS.get(model_id)
    if layouts is None:
        if len(_LAYOUTS) >= _MOST_MODELS:
            _LAYOUTS.clear()
        layouts = _LAYOUTS[model_id] = Layouts()
    found: list[Layout | wire.Event] = []
    number, by_size = int.from_bytes, layouts.by_size
    strays = 0
    for piece in pieces.events:
        own = by_size.get(len(piece))
        if own:
            bits = number(piece, "big")
            for layout in own:
                if bits & layout.mask == layout.template:
                    found.append(layout)
                    break
            else:
                own = None
        if not own:
            event = wire.Event.FromString(piece)
            strays += 1
            found.append(event)
            if layouts.may_learn:
                layouts.learn(_layout(model_id, head, event, piece))
                by_size = layouts.by_size
    layouts.count(len(found) - strays, strays)
    return tuple(found)


def _layout(model_id: str, head: wire.Header, event: wire.Event, piece: bytes) -> Layout | None:
    """None for an event that its columns do not say everything of, or that is of an unusual kind."""
    columns = parsed_columns(model_id, head, [event], [piece], no_names)
    if "exact" in columns:
        return None
    said = {name: value.tolist()[0] if isinstance(value, np.ndarray) else value for name, value in columns.items()}
    return Layout.of(piece, event, said)


def chained(links: Sequence[Link], before: Mapping[str, bytes]) -> tuple[list[bytes], dict[str, bytes]]:
    """The chain's value after each of these links, and after the last one of each model.

    `before` has the value that a model's chain goes on from, where it has one.
    """
    values: list[bytes] = []
    last: dict[str, bytes] = {}
    for link in links:
        model_id = link.model_id
        last[model_id] = link.after(last.get(model_id) or before.get(model_id, chain.BEGINNING))
        values.append(last[model_id])
    return values, last


def joined(links: Sequence[Link], first_sequence: int, chains: Sequence[bytes]) -> dict[str, Column]:
    """The rows of these links, at least one of them, numbered on from `first_sequence`.

    `chains` has the chain's value after each link.
    """
    columns = _table(links)
    for name in TIMES:
        micros = columns[name]
        if micros.min() <= FIRST_US or micros.max() >= LAST_US:
            columns[name] = np.where((micros > FIRST_US) & (micros < LAST_US), micros, 0)
    count = len(columns["number"])
    columns["sequence"] = np.arange(first_sequence, first_sequence + count, dtype=np.int64)
    columns["chain"] = np.full(count, None, dtype=object)
    stop = 0
    for link, value in zip(links, chains, strict=True):
        start, stop = stop, stop + link.events
        columns["chain"][stop - 1] = value
        if link.header != _header(columns, start, stop):
            exact_headers = columns.setdefault("exact_header", np.full(count, None, dtype=object))
            exact_headers[stop - 1] = link.header
    return columns


Alike = tuple[Layout, list[int]]
"""A layout, and the places of events that have it."""


class Part(NamedTuple):
    """Columns of some of the events."""

    places: Column
    """Which ones, among all."""
    columns: Columns


def _table(links: Sequence[Link]) -> dict[str, Column]:
    """All that the entries of the stream say of their events, in order; without columns that none of them has."""
    counts = [link.events for link in links]
    count = sum(counts)
    parts = _parts(links, np.repeat(np.arange(len(links)), counts))
    heads = [link.head for link in links]
    columns = {
        name: _assembled(name, parts, count) for name in dict.fromkeys(n for part in parts for n in part.columns)
    }
    columns["number"] = np.concatenate([np.asarray(link.numbers, dtype=np.int64) for link in links])
    columns["batch_rows"] = np.repeat(np.array([head.batch_rows for head in heads], dtype=np.int64), counts)
    of_links = {
        "model_id": [link.model_id for link in links],
        "event_entry_id": [link.entry_id for link in links],
        "worker": [head.worker for head in heads],
        "batch_id": [head.batch_id for head in heads],
        "engine": [head.engine for head in heads],
        "runtime_id": [head.runtime_id for head in heads],
    }
    for name, values in of_links.items():
        one = len(set(values)) == 1
        columns[name] = same(values[0] or None, count) if one else np.repeat(texts([v or None for v in values]), counts)
    return columns


def same(value: str | bytes | int | None, count: int, kind: type[np.generic] = np.object_) -> Column:
    """A column that has one value in all its rows, which takes no room."""
    return np.broadcast_to(np.array(value, dtype=kind), count)


def _parts(links: Sequence[Link], link_of: Column) -> list[Part]:
    """Events whose layouts are kin together, over all links; those that have none, link by link."""
    alike: dict[Layout, list[int]] = {}
    rest: dict[int, dict[int, wire.Event]] = {}
    pieces: list[bytes] = []
    first = []
    for which, link in enumerate(links):
        start = len(pieces)
        first.append(start)
        pieces += link.pieces
        for place, found in enumerate(link.parsed, start):
            if isinstance(found, Layout):
                places = alike.get(found)
                if places is None:
                    places = alike[found] = []
                places.append(place)
            else:
                rest.setdefault(which, {})[place] = found
    parts = []
    kin: dict[Hashable, list[Alike]] = {}
    strays: list[int] = []
    for layout, places in alike.items():
        if len(places) >= _FEW:
            kin.setdefault(layout.kin, []).append((layout, places))
        else:
            strays += places
    for family in kin.values():
        part, others = _part(family, pieces, links, link_of)
        strays += others
        if part is not None:
            parts.append(part)
    for place in strays:
        rest.setdefault(int(link_of[place]), {})[place] = wire.Event.FromString(pieces[place])
    for which, events in rest.items():
        link, in_order = links[which], sorted(events)
        own = [pieces[place] for place in in_order]
        parsed = [events[place] for place in in_order]
        parts.append(Part(np.array(in_order), parsed_columns(link.model_id, link.head, parsed, own, link.names)))
    return parts


def _part(
    family: Sequence[Alike], pieces: Sequence[bytes], links: Sequence[Link], link_of: Column
) -> tuple[Part | None, list[int]]:
    """Columns of those of these events that are sound, and the places of the others."""
    sliced, places = _sliced(family, pieces)
    own = link_of[places]
    predicted_us = np.array([link.head.predicted_us for link in links], dtype=np.int64)[own]
    good = sliced.sound(predicted_us)
    strays: list[int] = []
    if not good.all():
        strays = places[~good].tolist()
        if not good.any():
            return None, strays
        odd = frozenset(strays)
        sound = [(layout, [place for place in its if place not in odd]) for layout, its in family]
        sliced, places = _sliced([(layout, its) for layout, its in sound if its], pieces)
        predicted_us, own = predicted_us[good], own[good]
    columns = sliced.columns()
    columns["predicted_at_timestamp"] = predicted_us
    entry = family[0][0].example.entry
    if entry.hydrated:
        column = np.empty(len(places), dtype=object)
        for which in np.unique(own).tolist():
            link = links[which]
            column[own == which] = origins(link.model_id, entry, link.head.digest, link.names)
        columns["origins"] = column
    return Part(places, columns), strays


def _sliced(family: Sequence[Alike], pieces: Sequence[bytes]) -> tuple[Sliced, Column]:
    """These events, and the places of them in the order in which they are in that."""
    places = np.array([place for _, its in family for place in its])
    return Sliced([(layout, [pieces[place] for place in its]) for layout, its in family]), places


def _assembled(name: str, parts: Sequence[Part], count: int) -> Column:
    """One column, of all events."""
    kind = _TYPES[name]
    values = [part.columns.get(name) for part in parts]
    first = values[0]
    if not isinstance(first, np.ndarray) and all(not isinstance(v, np.ndarray) and v == first for v in values):
        return same(first, count, kind)
    column: Column = np.full(count, None, dtype=object) if kind is np.object_ else np.zeros(count, dtype=kind)
    for part, value in zip(parts, values, strict=True):
        if value is not None:
            column[part.places] = texts([value]) if isinstance(value, str | bytes) else value
    return column


def _header(columns: Mapping[str, Column], start: int, stop: int) -> bytes:
    """The header that these rows give."""
    last = stop - 1
    predicted, statuses = 0, columns["status"]
    for row in range(last, start - 1, -1):
        if statuses[row] in PREDICTED:
            predicted = int(columns["predicted_at_timestamp"][row])
            break
    return join_header(
        columns["model_id"][last],
        columns["version"][last],
        columns["digest"][last],
        columns["worker"][last],
        columns["batch_id"][last],
        int(columns["batch_rows"][last]),
        columns["engine"][last],
        columns["runtime_id"][last],
        predicted,
    )


def read_number(fields: Mapping[bytes, bytes]) -> int | None:
    """The running number of an entry, where it has one that a Redis counter can hold."""
    raw = fields.get(b"n", b"")
    return int(raw) if raw.isdigit() and len(raw) < 19 else None

"""A sealed segment: a Parquet file of one model's events that nothing changes any more, and the manifest beside it.

<events>/<model>/<first number>-<last number>.parquet
<events>/<model>/<first number>-<last number>.json      the manifest
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Self

import orjson

FORMAT = 1


class MalformedManifest(ValueError):
    """A manifest that can't be read; the message says what was expected and what came."""


@dataclass(frozen=True, slots=True)
class Segment:
    """What a manifest says."""

    model_id: str
    file: str
    """Name of the Parquet file, without its folder."""
    rows: int
    first_number: int
    last_number: int
    """Running numbers of its first and last event."""
    first_entry: str
    last_entry: str
    """Ids of the first and last entry of the events stream; it was cut between two."""
    first_request_us: int
    last_request_us: int
    """Least and greatest `user_request_timestamp`, in microseconds since the Unix epoch."""
    size: int
    """Of the file, in bytes."""
    sha256: str
    """Of the file, hex."""
    chain_before: str
    chain_after: str
    """The chain's value before its first link and after its last, hex."""
    sealed_us: int
    """When it was sealed, in microseconds since the Unix epoch."""
    first_sequence: int = 0
    last_sequence: int = 0
    """Of its first and last row; unlike running numbers these are in the order of commit whatever became of Redis."""
    last_appended_us: int = 0
    """Greatest `appended_timestamp`, in microseconds since the Unix epoch."""
    erased: int = 0
    """Rows in it that were emptied."""
    runtimes: Mapping[str, str] = field(default_factory=dict)
    """runtime_id -> its record, JSON, of those that its rows name."""

    @property
    def manifest(self) -> str:
        """Name of the manifest, without its folder."""
        return self.file.removesuffix(".parquet") + ".json"

    def encode(self) -> str:
        """The manifest: JSON on several lines, ending with one."""
        return orjson.dumps(
            {"format": FORMAT, **asdict(self)}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
        ).decode()

    @classmethod
    def decode(cls, raw: str | bytes) -> Self:
        """Raises MalformedManifest."""
        try:
            content = orjson.loads(raw)
            version = content.pop("format")
            if version != FORMAT:
                raise MalformedManifest(f"expected a manifest of format {FORMAT}, got format {version!r}")
            return cls(**content)
        except MalformedManifest:
            raise
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise MalformedManifest(f"expected the manifest of a segment: {error}") from None

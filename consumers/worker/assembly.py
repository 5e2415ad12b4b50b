"""One buffer for bytes that come in pieces, such as an artifact: chunks from Redis, or a trial's socket.

Nothing holds a second whole copy. CPython hands out what a BytesIO holds as bytes without copying it, and a BytesIO
made from bytes shares them until somebody writes: so does every loader that reads from one.
"""

from __future__ import annotations

from io import BytesIO


class Assembly:
    """So many bytes while they come in."""

    def __init__(self, size: int) -> None:
        """`size` is that of the whole, in bytes; raises MemoryError."""
        self._size = size
        self._buffer = BytesIO()
        if size:
            # All of it at once, so that it never has to move where it grows.
            self._buffer.seek(size - 1)
            self._buffer.write(b"\0")
            self._buffer.seek(0)

    def add(self, piece: bytes) -> None:
        """What comes next; raises ValueError where that is more than was to come."""
        if self._buffer.tell() + len(piece) > self._size:
            raise ValueError(f"more came than {self._size} bytes")
        self._buffer.write(piece)

    @property
    def is_full(self) -> bool:
        """Whether all of it was added."""
        return self._buffer.tell() == self._size

    def space(self) -> memoryview:
        """All of it, to be written to in place; released before `whole` is asked for."""
        return self._buffer.getbuffer()

    def whole(self) -> bytes:
        """The buffer itself, which nobody can write to any more; what did not come is zeros."""
        content = self._buffer.getvalue()
        self._buffer = BytesIO()
        return content

"""Text files: what `io` makes of a binary file, with the binary file's operations besides."""

from __future__ import annotations

import io
from typing import Any


class TextFile(io.TextIOWrapper):
    """A text file of an arena. Offsets and sizes of what `io` does not have are bytes.

    Text that was written and not yet encoded goes into the file before any of these operations.
    """

    def _binary(self) -> Any:
        self.flush()
        # Files of snapshots have a buffer of `io` in between.
        return getattr(self.buffer, "raw", self.buffer)

    def pread(self, n: int, offset: int) -> bytes:
        """Up to `n` bytes from `offset`; fewer only at the end of the file."""
        data: bytes = self._binary().pread(n, offset)
        return data

    def preadinto(self, buffer: Any, offset: int) -> int:
        """Fill a writable buffer from `offset`; returns the bytes read."""
        return int(self._binary().preadinto(buffer, offset))

    def pwrite(self, data: Any, offset: int) -> int:
        """Write bytes at `offset`, atomically; returns how many."""
        return int(self._binary().pwrite(data, offset))

    def fallocate(self, offset: int, length: int) -> None:
        """Reserve space for a range; grows the file if need be."""
        self._binary().fallocate(offset, length)

    def fsync(self) -> None:
        """Return when everything written is on the medium."""
        self._binary().fsync()

    def stat(self) -> Any:
        """Attributes of the open file."""
        return self._binary().stat()

    def mmap(self, offset: int = 0, length: int | None = None, writable: bool = True) -> Any:
        """Map the file into memory; see the binary file."""
        return self._binary().mmap(offset, length, writable)

"""A copy of what the checker reads, taken while the file system is frozen.

A check takes seconds, and nobody should wait for it: so the structures are copied in a fraction of
that time, and checked after the file system has gone on. File data is not copied; the checker never
reads it.
"""

from __future__ import annotations

from nova_mp.tools.image import BLOCK_BYTES, PAGE_TAIL, Image, K, ignore


class FrozenImage(Image):
    """An image that holds copies of the structures of another one; other blocks read as zero."""

    def __init__(self, source: Image) -> None:
        super().__init__(b"", name=source.name)
        self.frozen = True
        self.size_bytes = source.size_bytes
        self.blocks = source.blocks
        self._pages: dict[int, bytes] = {}
        self._copy(source)

    def stored(self, nr: int) -> bytes:
        """Contents of block `nr` as copied."""
        return self._pages.get(nr, bytes(BLOCK_BYTES))

    def _copy(self, source: Image) -> None:
        for copy in source.superblocks():
            self._pages[copy.block_nr] = source.page(copy.block_nr)
        for nr in range(min(K["DATA_NR"], self.blocks)):
            self._pages[nr] = source.page(nr)
        if self.blocks <= K["DATA_NR"]:
            return
        for table in range(K["MAX_CPUS"]):
            for chunk, first in source.chunks(table, ignore):
                for nr in range(first, first + K["CHUNK_BLOCKS"]):
                    self._pages[nr] = source.page(nr)
                for _, inode in source.chunk_inodes(table, chunk, first):
                    self._copy_log(source, inode["log_head_off"])

    def _copy_log(self, source: Image, offset: int) -> None:
        while offset and offset % BLOCK_BYTES == 0:
            nr = offset // BLOCK_BYTES
            if nr in self._pages or not source.data_range(nr):
                return
            self._pages[nr] = page = source.page(nr)
            tail = PAGE_TAIL.decode(page, K["LOG_TAIL_OFF"])
            if tail["magic"] != K["MAGIC_LOG_PAGE"]:
                return
            offset = tail["next_page_off"]

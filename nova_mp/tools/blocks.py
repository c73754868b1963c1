"""Who owns each block of an arena: every block has one owner, or is free."""

from __future__ import annotations

from array import array

from nova_mp.tools.findings import Report
from nova_mp.tools.image import K

FREE, HEAD, TABLE, LOG, DATA, HELD, LIST, RESERVE, ORPHAN = range(9)
KINDS = ("free", "head", "table", "log", "data", "held", "list", "reserve", "orphan")
_TITLES = (
    "nobody",
    "the arena's head",
    "inode table",
    "the log of inode",
    "the data of inode",
    "a snapshot's view of inode",
    "the saved lists of snapshot",
    "the log reserve of inode",
    "dead inode",
)


class Blocks:
    """Owners of the blocks of one arena: a kind, and the inode (table, snapshot) it belongs to.

    Claims that conflict are reported, and leave the first owner in place.
    """

    def __init__(self, blocks: int, report: Report) -> None:
        self.total = blocks
        self.report = report
        self.kinds = bytearray(blocks)
        self.owners = array("Q", bytes(8 * blocks))
        for nr in (*range(min(K["DATA_NR"], blocks)), *range(max(blocks - 1, 0), blocks)):
            self.kinds[nr] = HEAD

    def claim(self, nr: int, kind: int, owner: int) -> None:
        """Block `nr` belongs to `owner`."""
        if self.kinds[nr] == FREE:
            self.kinds[nr] = kind
            self.owners[nr] = owner
            return
        code = "FSCK-802" if HELD in (kind, self.kinds[nr]) else "FSCK-702"
        mine = f"{_TITLES[kind]} {owner}"
        self.report.error(code, f"it belongs to {self.describe(nr)} and to {mine}", f"block:{nr}")

    def claim_left(self, nr: int, kind: int, owner: int) -> bool:
        """Block `nr` belongs to `owner` if nobody else claims it; whether that is so."""
        if self.kinds[nr] == FREE:
            self.kinds[nr] = kind
            self.owners[nr] = owner
            return True
        return False

    def describe(self, nr: int) -> str:
        """Owner of block `nr` in words."""
        kind = self.kinds[nr]
        if kind in (FREE, HEAD):
            return _TITLES[kind]
        return f"{_TITLES[kind]} {self.owners[nr]}"

    def kind(self, nr: int) -> str:
        """Kind of block `nr`: one of KINDS."""
        return KINDS[self.kinds[nr]]

    def count(self) -> dict[str, int]:
        """Blocks by kind, and their total."""
        counts = {name: self.kinds.count(kind) for kind, name in enumerate(KINDS)}
        return {"total": self.total, **counts}

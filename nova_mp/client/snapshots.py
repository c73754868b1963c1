"""Snapshots as a user of a file system sees them: create, list, get, open, delete, wait.

Only the coordinator creates and deletes, one at a time, so those are requests to it. Listing and
opening depend on how the file system is reached, so each kind of FileSystem brings its own
subclass of Snapshots.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from nova_mp.errors import NoSuchSnapshot

if TYPE_CHECKING:
    from nova_mp.client.base import FileSystem

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One snapshot, as it was when it was asked for.

    epoch_id         the id: the epoch that the snapshot closed
    name             the name it was created with, or None
    created          when (UTC)
    list_pages       pages of 4 KiB in its lists of what only snapshots hold
    exclusive_bytes  what deleting it alone would free
    listed_bytes     data in its lists: what live files no longer have, and it is the first to need
    opens            how many times it is open now
    deferred         it is to be deleted once nobody has it open
    """

    epoch_id: int
    name: str | None
    created: datetime
    list_pages: int
    exclusive_bytes: int
    listed_bytes: int = 0
    opens: int = 0
    deferred: bool = False

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Snapshot:
        """From a row of the snapshot table."""
        return cls(
            epoch_id=int(row["epoch_id"]),
            name=row.get("name") or None,
            # Microseconds as integers: a float of seconds would round them.
            created=_EPOCH + timedelta(microseconds=int(row["create_time_ns"]) // 1000),
            list_pages=int(row.get("list_pages", 0)),
            exclusive_bytes=int(row.get("exclusive_bytes", 0)),
            listed_bytes=int(row.get("listed_bytes", 0)),
            opens=int(row.get("opens", 0)),
            deferred=bool(row.get("deferred", False)),
        )


SnapshotKey = int | str | Snapshot
# Inside the class, `list` is the method.
SnapshotList = list[Snapshot]
Rows = list[dict[str, Any]]
Ids = list[int]


class Snapshots(ABC):
    """The snapshots of one arena; `fs.snapshots`.

    A snapshot is named by its id (int), its name (str), its id in decimal (str, where no snapshot
    has that name), or a Snapshot.
    """

    def create(self, name: str | None = None) -> Snapshot:
        """Take a snapshot of everything; when this returns it is complete and immutable.

        It holds every operation that had returned before the call and none that starts after it
        returned; writers are not stopped. FileExistsError if the name is taken.
        """
        if name is not None and not isinstance(name, str):
            raise TypeError(f"a snapshot's name is a str, not {type(name).__name__}")
        epoch_id = self._create(name)
        for row in self._table(only=epoch_id):
            if row["epoch_id"] == epoch_id:
                return Snapshot.from_row(row)
        raise NoSuchSnapshot(
            f"snapshot {epoch_id} was deleted as soon as it had been created",
            "create it again, and look for who deletes snapshots of this arena",
        )

    def list(self) -> SnapshotList:
        """All snapshots, oldest first."""
        return [Snapshot.from_row(row) for row in self._table()]

    def get(self, id_or_name: SnapshotKey) -> Snapshot:
        """One snapshot; NoSuchSnapshot (a FileNotFoundError) if there is none."""
        rows = self._table()
        if isinstance(id_or_name, Snapshot):
            id_or_name = id_or_name.epoch_id
        if isinstance(id_or_name, bool) or not isinstance(id_or_name, int | str):
            raise TypeError(
                f"a snapshot is named by int, str or Snapshot, not {type(id_or_name).__name__}"
            )
        if isinstance(id_or_name, str):
            for row in rows:
                if row.get("name") == id_or_name:
                    return Snapshot.from_row(row)
        if isinstance(id_or_name, int) or id_or_name.isdecimal():
            for row in rows:
                if row["epoch_id"] == int(id_or_name):
                    return Snapshot.from_row(row)
        raise NoSuchSnapshot(
            f"there is no snapshot {id_or_name!r}", "see which there are with snapshots.list()"
        )

    def delete(self, id_or_name: SnapshotKey, defer: bool = False) -> bool:
        """Delete a snapshot; what only it held is freed in the background (see `wait`).

        NoSuchSnapshot if there is none, OSError(EBUSY) while somebody has it open. With `defer`
        that is no error: it cannot be opened any more, and is deleted once the last who has it
        open closes it; a power failure before undoes that. True if it is gone, False if deferred.
        """
        return self._delete(self.get(id_or_name).epoch_id, defer)

    def frees(self, ids_or_names: Iterable[SnapshotKey]) -> int:
        """Bytes that deleting all these together would free.

        That is more than the sum of their `exclusive_bytes` if some is needed by several of them,
        and nobody else. Log space of files that live on comes on top.
        """
        return self._frees(sorted({self.get(key).epoch_id for key in ids_or_names}))

    def open(self, id_or_name: SnapshotKey) -> FileSystem:
        """Open a snapshot as a read-only file system, to be closed after use.

        Whatever would change something raises OSError(EROFS). The snapshot cannot be deleted while
        it is open.
        """
        snapshot = self.get(id_or_name)
        if snapshot.deferred:
            raise NoSuchSnapshot(
                f"snapshot {snapshot.epoch_id} is deleted as soon as nobody has it open",
                "open another one: see snapshots.list()",
            )
        return self._open(snapshot)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the cleaner has freed everything that deleted snapshots held.

        `timeout` in seconds; None waits as long as it takes. Raises nova_mp.errors.Timeout.
        """
        self._wait(timeout)

    def __iter__(self) -> Iterator[Snapshot]:
        return iter(self.list())

    def __len__(self) -> int:
        return len(self._table())

    @abstractmethod
    def _table(self, only: int | None = None) -> Rows:
        """Rows as `Core.snapshot_table()` gives them, ascending; at least that of `only`."""

    @abstractmethod
    def _create(self, name: str | None) -> int:
        """Ask the coordinator for a snapshot; returns its id."""

    @abstractmethod
    def _delete(self, epoch_id: int, defer: bool) -> bool:
        """Ask the coordinator to delete a snapshot; False if that is deferred."""

    @abstractmethod
    def _frees(self, epoch_ids: Ids) -> int:
        """Bytes that deleting these together would free."""

    @abstractmethod
    def _open(self, snapshot: Snapshot) -> FileSystem:
        """Open a snapshot read-only."""

    @abstractmethod
    def _wait(self, timeout: float | None) -> None:
        """Wait for the cleaner."""

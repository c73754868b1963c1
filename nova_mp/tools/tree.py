"""Names and links: what the directories say against what the inodes say, now and in snapshots.

Invariants FMT-8 (names), FMT-9 (link counts) and FMT-11 (what snapshots need) of docs/FORMAT.md.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from nova_mp.tools.findings import Report
from nova_mp.tools.image import DTYPES, K
from nova_mp.tools.replay import FOREVER, Name, Replayed, Snapshots

ROOT = K["ROOT_INO"]


class TreeChecker:
    """Checks the names of all directories in `states` (every inode but the snapshot inode)."""

    def __init__(self, states: dict[int, Replayed], snapshots: Snapshots, report: Report) -> None:
        self.states = states
        self.snapshots = snapshots
        self.report = report
        self.names: Counter[int] = Counter()  # names that lead to an inode today
        self.past: dict[int, list[Name]] = defaultdict(list)  # those that snapshots hold

    def run(self) -> None:
        """Check everything and report."""
        directories = [state for state in self.states.values() if state.is_directory]
        for directory in directories:
            for name in directory.names.values():
                self._name(directory, name)
        self._reachable([state for state in directories if not state.delete_epoch_id])
        self._links()
        if self.snapshots.ids:
            for directory in directories:
                for name in directory.names.values():
                    self._past_name(directory, name)
                for name in directory.past_names:
                    self._past_name(directory, name)
            for state in self.states.values():
                self._past_links(state)

    # -- today

    def _name(self, directory: Replayed, name: Name) -> None:
        error = self.report.error
        where = f"inode:{directory.ino} name {name.name!r}"
        if not name.name or name.name in (b".", b"..") or b"/" in name.name or b"\0" in name.name:
            error("FSCK-604", f"{name.name!r}", where)
        target = self.states.get(name.ino)
        if target is None:
            error("FSCK-601", f"inode {name.ino} is not in use", where)
            return
        self.names[name.ino] += 1
        if target.delete_epoch_id:
            what = f"inode {name.ino} was deleted in epoch {target.delete_epoch_id}"
            error("FSCK-602", what, where)
        if DTYPES.get(target.file_type) != name.dtype:
            error("FSCK-603", f"type {name.dtype}, the inode's mode is {target.mode:#o}", where)
        if target.create_epoch_id > name.created:
            what = f"of epoch {name.created}, the inode of {target.create_epoch_id}"
            error("FSCK-603", what, where)
        if target.is_directory and (self.names[name.ino] > 1 or name.ino == ROOT):
            error("FSCK-606", f"directory {name.ino} has another name", where)

    def _reachable(self, directories: list[Replayed]) -> None:
        # From the root, then from every directory without a name (reported on its own), so that
        # what lies below it is not reported too. What is left then is on or below a cycle.
        tops = [state.ino for state in directories if state.ino == ROOT]
        tops += [s.ino for s in directories if not self.names[s.ino] and s.ino != ROOT]
        seen = set(tops)
        while tops:
            for ino in self._subdirectories(self.states[tops.pop()].names.values()):
                if ino not in seen:
                    seen.add(ino)
                    tops.append(ino)
        for state in directories:
            if state.ino not in seen:
                what = "it is its own ancestor, or lies below one that is"
                self.report.error("FSCK-606", what, f"inode:{state.ino}")

    def _subdirectories(self, names: Iterable[Name]) -> list[int]:
        inos = [name.ino for name in names if name.ino in self.states]
        return [ino for ino in inos if self.states[ino].is_directory]

    def _links(self) -> None:
        for ino, state in self.states.items():
            if state.delete_epoch_id or ino == ROOT:
                continue
            names = self.names[ino]
            if not names:
                self.report.error("FSCK-607", "no name leads to it", f"inode:{ino}")
            elif not state.is_directory and state.intact and names != state.nlink:
                what = f"{state.nlink} links, {names} names"
                self.report.error("FSCK-608", what, f"inode:{ino}")

    # -- in snapshots

    def _past_name(self, directory: Replayed, name: Name) -> None:
        if not self.snapshots.needed(name.created, name.superseded):
            return
        self.past[name.ino].append(name)
        last = self.snapshots.last_before(name.superseded)
        target = self.states.get(name.ino)
        if target is None:
            what = f"inode {name.ino} is not in use"
        elif target.create_epoch_id > name.created:
            what = f"inode {name.ino} is of epoch {target.create_epoch_id}"
        elif 0 < target.delete_epoch_id <= last:
            what = f"inode {name.ino} was deleted in epoch {target.delete_epoch_id}"
        else:
            return
        where = f"inode:{directory.ino} name {name.name!r} snapshot {last}"
        self.report.error("FSCK-803", what, where)

    def _past_links(self, state: Replayed) -> None:
        """Compare names and links at each snapshot before which one of them changed."""
        if state.ino == ROOT or not state.intact:
            return
        end = state.delete_epoch_id or FOREVER
        names = self.past.get(state.ino, [])
        changes = {state.create_epoch_id}
        changes.update(epoch for epoch, _ in state.links)
        changes.update(name.created for name in names)
        changes.update(name.superseded for name in names if name.superseded < FOREVER)
        seen: set[int] = set()
        for epoch in changes:
            snapshot = self.snapshots.first(epoch)
            if snapshot is None or snapshot in seen or not state.create_epoch_id <= snapshot < end:
                continue
            seen.add(snapshot)
            count = sum(name.created <= snapshot < name.superseded for name in names)
            links = 1
            if not state.is_directory:
                links = next((n for e, n in reversed(state.links) if e <= snapshot), 0)
            if count != links:
                what = f"{links} links, {count} names"
                self.report.error("FSCK-804", what, f"inode:{state.ino} snapshot {snapshot}")

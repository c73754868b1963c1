"""What the checker can find: numbered codes, findings and the report that holds them.

Each code names the invariant that it checks. `FMT-n` are the rules of a consistent arena, listed in
docs/FORMAT.md; `LAY-n` stand at the head of `core/layout.pxd`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

MOST_PER_CODE = 100  # one broken root directory would otherwise list every file of the arena


@dataclass(frozen=True)
class Code:
    """A kind of finding: what it says, and the invariants that are broken when it is found."""

    meaning: str
    invariants: str


CODES: dict[str, Code] = {
    "FSCK-101": Code("this is not an arena: no superblock magic in either copy", "FMT-1"),
    "FSCK-102": Code("both superblock copies are damaged", "FMT-1"),
    "FSCK-103": Code("one superblock copy is damaged", "FMT-1"),
    "FSCK-104": Code("unknown format version", "FMT-1"),
    "FSCK-105": Code("impossible geometry in the superblock", "FMT-1"),
    "FSCK-106": Code("the superblock copies of a clean arena differ", "FMT-1"),
    "FSCK-107": Code("unknown mount state", "FMT-1"),
    "FSCK-108": Code("the superblock's epoch is behind the last snapshot", "FMT-12, REC-2, SNAP-1"),
    "FSCK-201": Code("inode-table chunk outside the data area or not aligned", "FMT-3"),
    "FSCK-202": Code("damaged chunk header (magic or checksum)", "FMT-3"),
    "FSCK-203": Code("chunk header names another table or number", "FMT-3"),
    "FSCK-204": Code("chunk is linked twice", "FMT-3"),
    "FSCK-301": Code("unknown inode state", "FMT-4"),
    "FSCK-302": Code("inode checksum is wrong", "FMT-4"),
    "FSCK-303": Code("inode carries another slot's number", "FMT-4"),
    "FSCK-304": Code("unknown file type", "FMT-4"),
    "FSCK-305": Code("impossible create or delete epoch of an inode", "FMT-4, FMT-12"),
    "FSCK-306": Code("a reserved inode is missing, or in use without a purpose", "FMT-4"),
    "FSCK-307": Code("more inodes in use than inode_limit", "FMT-4"),
    "FSCK-401": Code("log page outside the data area or not aligned", "FMT-5"),
    "FSCK-402": Code("log page without its magic", "FMT-5"),
    "FSCK-403": Code("log page belongs to another inode", "FMT-5, LOG-3"),
    "FSCK-404": Code("log pages form a cycle", "FMT-5"),
    "FSCK-405": Code("log tail is not in the chain of log pages", "FMT-5, LAY-3"),
    "FSCK-406": Code("log head or tail is not where an entry can start", "FMT-5, LAY-1"),
    "FSCK-411": Code("log entry checksum is wrong", "FMT-6, LOG-4"),
    "FSCK-412": Code("log entry of a type that is unknown, or wrong for this inode", "FMT-6"),
    "FSCK-413": Code("log entry of a wrong size, or across the end of its page", "FMT-6, LAY-1"),
    "FSCK-414": Code("epochs go backwards in a log", "FMT-7, LOG-2"),
    "FSCK-415": Code("log entry from an epoch that has not begun", "FMT-7, FMT-12"),
    "FSCK-416": Code("log entry with impossible contents", "FMT-6"),
    "FSCK-501": Code("journal with an impossible number of records", "FMT-2, JRN-1"),
    "FSCK-502": Code("journal records do not match their checksum", "FMT-2, JRN-1"),
    "FSCK-503": Code("journal record for a word that no journal may store", "FMT-2"),
    "FSCK-504": Code("committed journal in a cleanly unmounted arena", "FMT-2, JRN-2"),
    "FSCK-601": Code("directory entry leads to no valid inode", "FMT-8"),
    "FSCK-602": Code("directory entry leads to a deleted inode", "FMT-8"),
    "FSCK-603": Code(
        "directory entry and inode disagree (file type, or the inode is younger)", "FMT-8"
    ),
    "FSCK-604": Code("impossible file name", "FMT-8"),
    "FSCK-605": Code("name added twice", "FMT-8"),
    "FSCK-606": Code("directory with several parents, or its own ancestor", "FMT-8"),
    "FSCK-607": Code("inode in use that no directory leads to", "FMT-8"),
    "FSCK-608": Code("link count is not the number of names", "FMT-9"),
    "FSCK-609": Code("deleted directory that still holds names", "FMT-8"),
    "FSCK-701": Code("data blocks outside the data area", "FMT-10"),
    "FSCK-702": Code("block with two owners", "FMT-10, REC-1"),
    "FSCK-703": Code("file pages past the end of file", "FMT-10"),
    "FSCK-704": Code(
        "page of a log reserve, or of a dead inode's log, has another owner", "FMT-10"
    ),
    "FSCK-705": Code("the engine counts other free blocks than the logs leave", "FMT-10"),
    "FSCK-706": Code("dead inode in a clean arena that no snapshot needs", "FMT-11"),
    "FSCK-801": Code("snapshots out of order or twice", "FMT-12"),
    "FSCK-802": Code("block that a snapshot needs has another owner", "FMT-11, REC-1, SNAP-4"),
    "FSCK-803": Code("name in a snapshot leads to an inode that is gone", "FMT-11, SNAP-4"),
    "FSCK-804": Code("link count in a snapshot is not its number of names", "FMT-9, FMT-11, GC-2"),
    "FSCK-805": Code("damaged saved snapshot list", "FMT-13, SAVE-1"),
    "FSCK-806": Code("a saved list holds what its snapshot does not need", "FMT-13, SNAP-2"),
    "FSCK-807": Code("two snapshots have one name", "FMT-12"),
    "FSCK-808": Code("a saved list has other pages or entries than it counts", "FMT-13, SNAP-5"),
    "FSCK-809": Code("what snapshots need is in no saved list, or in two", "FMT-13, SNAP-3, GC-4"),
    "FSCK-810": Code("saved lists count in an arena that was used since", "FMT-13, SAVE-2"),
    "FSCK-811": Code("the engine counts other exclusive blocks of a snapshot", "LIST-1"),
}


@dataclass(frozen=True)
class Finding:
    """One thing found: its code, what it is, and where (named as `dump` names objects)."""

    code: str
    message: str
    where: str


@dataclass
class Report:
    """The outcome of a check.

    `errors` break an invariant; `warnings` are what a crash may leave and the next mount repairs;
    `notes` are remarks on the check itself. At most MOST_PER_CODE findings of one code are listed;
    `statistics["findings"]` counts them all.
    """

    errors: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        """True if no invariant is broken."""
        return not self.errors

    def error(self, code: str, message: str, where: str) -> None:
        """Record a broken invariant."""
        self._add(self.errors, code, message, where)

    def warning(self, code: str, message: str, where: str) -> None:
        """Record something that is odd but harmless."""
        self._add(self.warnings, code, message, where)

    def _add(self, into: list[Finding], code: str, message: str, where: str) -> None:
        assert code in CODES, code
        self.counts[code] += 1
        if self.counts[code] <= MOST_PER_CODE:
            into.append(Finding(code, message, where))

    def codes(self) -> set[str]:
        """The codes that were found, as errors or as warnings."""
        return set(self.counts)

    def as_dict(self) -> dict[str, Any]:
        """Everything in JSON-able form."""
        return {
            "ok": self.ok,
            "errors": [asdict(finding) for finding in self.errors],
            "warnings": [asdict(finding) for finding in self.warnings],
            "notes": list(self.notes),
            "statistics": {**self.statistics, "findings": dict(sorted(self.counts.items()))},
        }


def format_report(report: Report) -> str:
    """The report as text for people: findings first, then the sums."""
    lines = []
    for title, findings in (("error", report.errors), ("warning", report.warnings)):
        for finding in findings:
            lines.append(f"{title} {finding.code} at {finding.where}: {finding.message}")
            lines.append(f"    {CODES[finding.code].meaning} ({CODES[finding.code].invariants})")
    for code, count in sorted(report.counts.items()):
        if count > MOST_PER_CODE:
            lines.append(f"{code}: {count} found, the first {MOST_PER_CODE} are listed")
    lines += [f"note: {note}" for note in report.notes]
    for group, values in report.statistics.items():
        if isinstance(values, dict):
            text = "  ".join(f"{key} {value}" for key, value in values.items() if value != "")
            lines.append(f"{group}: {text}")
        else:
            lines.append(f"{group}: {values}")
    errors = sum(report.counts[code] for code in {finding.code for finding in report.errors})
    lines.append("clean" if report.ok else f"{errors} error{'s' * (errors != 1)}")
    return "\n".join(lines)

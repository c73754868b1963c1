"""The tiny model: a file system as nested dictionaries, a snapshot as a copy of all of it.

It knows nothing of blocks, logs or epochs. Times cannot be foretold, so an operation names what it
stamps in `Model.stamped`, and whoever drives the model fills in what was observed.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import Any

PAGE = 4096
DIRECTORY, FILE, LINK = 4, 8, 10
KINDS = {DIRECTORY: 0o040000, FILE: 0o100000, LINK: 0o120000}


@dataclass(eq=False)
class Node:
    """An inode. `data` is a file's contents or a link's target; `pages` are those with blocks."""

    kind: int
    mode: int
    ino: int = 0
    uid: int = 0
    gid: int = 0
    links: int = 1
    data: bytes = b""
    pages: frozenset[int] = frozenset()
    names: dict[str, Node] = field(default_factory=dict)
    xattrs: dict[str, bytes] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)

    @property
    def nlink(self) -> int:
        """Links; a directory's are two and one for each directory in it."""
        if self.kind != DIRECTORY:
            return self.links
        return 2 + sum(child.kind == DIRECTORY for child in self.names.values())

    def shown(self) -> tuple[Any, ...]:
        """What `crashsim.arena.contents` shows of it."""
        times = tuple(self.times[name] for name in ("mtime", "ctime", "atime", "birthtime"))
        mode = KINDS[self.kind] | self.mode
        size = () if self.kind == DIRECTORY else (len(self.data), len(self.pages) * 8)
        return (self.ino, mode, self.nlink, self.uid, self.gid, *times, *size)


def contents(root: Node) -> dict[str, Any]:
    """The tree as `crashsim.arena.contents` gives it."""
    found: dict[str, Any] = {"/": root.shown()}
    stack = [("", root)]
    while stack:
        directory, node = stack.pop()
        for name, child in node.names.items():
            path = f"{directory}/{name}"
            data: Any = child.data
            if child.kind == DIRECTORY:
                stack.append((path, child))
                data = None
            elif child.kind == LINK:
                data = os.fsdecode(data)
            found[path] = (*child.shown(), dict(child.xattrs), data)
    return found


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Model:
    """The operations. Paths are absolute and lead through no symbolic link."""

    def __init__(self) -> None:
        self.root = Node(DIRECTORY, 0o755)
        self.snapshots: dict[int, tuple[str | None, int, dict[str, Any]]] = {}
        self.stamped: list[tuple[Node, str]] = []

    # -- looking

    def node(self, path: str) -> Node:
        """What a path leads to; a symbolic link itself."""
        node = self.root
        for part in path.strip("/").split("/"):
            if part:
                if node.kind != DIRECTORY:
                    raise error(errno.ENOTDIR)
                if part not in node.names:
                    raise error(errno.ENOENT)
                node = node.names[part]
        return node

    def parent(self, path: str) -> tuple[Node, str]:
        """The directory that holds a name, and the name."""
        above, _, name = path.rpartition("/")
        node = self.node(above)
        if node.kind != DIRECTORY:
            raise error(errno.ENOTDIR)
        return node, name

    def paths(self, *kinds: int) -> list[str]:
        """Paths of everything of these kinds, sorted; the root is "/"."""
        found, stack = [], [("", self.root)]
        while stack:
            path, node = stack.pop()
            if node.kind in kinds:
                found.append(path or "/")
            stack += [(f"{path}/{name}", child) for name, child in node.names.items()]
        return sorted(found)

    def stamp(self, node: Node, *names: str) -> None:
        """The operation sets these times of `node` to the time at which it runs."""
        self.stamped += [(node, name) for name in names]

    # -- names

    def make(self, path: str, kind: int, mode: int, data: bytes = b"") -> Node:
        """Creates a file, directory or symbolic link."""
        parent, name = self.parent(path)
        if name in parent.names:
            raise error(errno.EEXIST)
        pages = frozenset([0]) if data else frozenset()
        node = Node(kind, mode, uid=os.geteuid(), gid=os.getegid(), data=data, pages=pages)
        parent.names[name] = node
        self.stamp(node, "mtime", "ctime", "atime", "birthtime")
        self.stamp(parent, "mtime", "ctime")
        return node

    def link(self, src: str, dst: str) -> None:
        """A second name for a file or symbolic link."""
        node = self.node(src)
        parent, name = self.parent(dst)
        if name in parent.names:
            raise error(errno.EEXIST)
        if node.kind == DIRECTORY:
            raise error(errno.EPERM)
        parent.names[name] = node
        node.links += 1
        self.stamp(node, "ctime")
        self.stamp(parent, "mtime", "ctime")

    def _drop(self, parent: Node, name: str) -> None:
        node = parent.names.pop(name)
        node.links -= 1
        self.stamp(node, "ctime")

    def unlink(self, path: str) -> None:
        """Takes a name away."""
        parent, name = self.parent(path)
        node = self.node(path)
        if node.kind == DIRECTORY:
            raise error(errno.EISDIR)
        self._drop(parent, name)
        self.stamp(parent, "mtime", "ctime")

    def rmdir(self, path: str) -> None:
        """Takes an empty directory away."""
        if path == "/":
            raise error(errno.EBUSY)
        parent, name = self.parent(path)
        node = self.node(path)
        if node.kind != DIRECTORY:
            raise error(errno.ENOTDIR)
        if node.names:
            raise error(errno.ENOTEMPTY)
        self._drop(parent, name)
        self.stamp(parent, "mtime", "ctime")

    def rename(self, src: str, dst: str, noreplace: bool = False) -> None:
        """Moves a name, replacing what is there."""
        if "/" in (src, dst):
            raise error(errno.EBUSY)
        source, old_name = self.parent(src)
        target, new_name = self.parent(dst)
        moved = self.node(src)
        victim = target.names.get(new_name)
        if victim is not None and noreplace:
            raise error(errno.EEXIST)
        if (dst + "/").startswith(src + "/") and src != dst:
            raise error(errno.EINVAL)
        if (src + "/").startswith(dst + "/") and src != dst:
            raise error(errno.ENOTEMPTY)
        if victim is moved:
            return
        if victim is not None:
            if moved.kind == DIRECTORY and victim.kind != DIRECTORY:
                raise error(errno.ENOTDIR)
            if moved.kind != DIRECTORY and victim.kind == DIRECTORY:
                raise error(errno.EISDIR)
        if victim is not None:
            if victim.kind == DIRECTORY and victim.names:
                raise error(errno.ENOTEMPTY)
            self._drop(target, new_name)
        del source.names[old_name]
        target.names[new_name] = moved
        self.stamp(moved, "ctime")
        self.stamp(source, "mtime", "ctime")
        self.stamp(target, "mtime", "ctime")

    # -- files

    def write(self, node: Node, offset: int, data: bytes) -> None:
        """Bytes at an offset; what was between the old end and it reads as zeros."""
        if not data:
            return
        end = offset + len(data)
        node.data = node.data[:offset].ljust(offset, b"\0") + data + node.data[end:]
        node.pages |= frozenset(range(offset // PAGE, -(-end // PAGE)))
        self.stamp(node, "mtime", "ctime")

    def truncate(self, node: Node, size: int) -> None:
        """Cuts, or grows with a hole."""
        node.data = node.data[:size].ljust(size, b"\0")
        node.pages = frozenset(page for page in node.pages if page < -(-size // PAGE))
        self.stamp(node, "mtime", "ctime")

    def fallocate(self, node: Node, offset: int, length: int) -> None:
        """Blocks for a range, which grows the file if it ends behind its end."""
        end = offset + length
        node.data = node.data.ljust(end, b"\0")
        node.pages |= frozenset(range(offset // PAGE, -(-end // PAGE)))
        self.stamp(node, "ctime")

    # -- attributes

    def chmod(self, path: str, mode: int) -> None:
        """Permissions."""
        node = self.node(path)
        node.mode = mode
        self.stamp(node, "ctime")

    def chown(self, path: str, uid: int, gid: int) -> None:
        """Owner and group."""
        node = self.node(path)
        node.uid, node.gid = uid, gid
        self.stamp(node, "ctime")

    def utime(self, path: str, atime: int, mtime: int) -> None:
        """Access and modification time, nanoseconds."""
        node = self.node(path)
        node.times.update(atime=atime, mtime=mtime)
        self.stamp(node, "ctime")

    def setxattr(self, path: str, name: str, value: bytes) -> None:
        """Sets an extended attribute."""
        node = self.node(path)
        node.xattrs[name] = value
        self.stamp(node, "ctime")

    def removexattr(self, path: str, name: str) -> None:
        """Removes one; ENODATA if there is none."""
        node = self.node(path)
        if name not in node.xattrs:
            raise error(errno.ENODATA)
        del node.xattrs[name]
        self.stamp(node, "ctime")

    # -- snapshots

    def snapshot(self, epoch_id: int, name: str | None, create_time_ns: int) -> None:
        """Keeps everything as it is."""
        self.snapshots[epoch_id] = (name, create_time_ns, contents(self.root))

    def everything(self) -> dict[int, Any]:
        """As `crashsim.arena.everything` gives it."""
        return {0: contents(self.root), **self.snapshots}

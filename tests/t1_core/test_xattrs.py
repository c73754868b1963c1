"""Extended attributes, attached and remote, against the kernel's tmpfs."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest
from model.differential import Pair, tree

from nova_mp.client.base import FileSystem

Action = Callable[[FileSystem], Any]

XATTRS: dict[str, Action] = {
    "get missing": lambda fs: fs.getxattr("/file", "user.none"),
    "get": lambda fs: (fs.setxattr("/file", "user.a", b"1"), fs.getxattr("/file", "user.a")),
    "set empty": lambda fs: (fs.setxattr("/file", "user.a", b""), fs.getxattr("/file", "user.a")),
    "overwrite": lambda fs: (
        fs.setxattr("/file", "user.a", b"first value"),
        fs.setxattr("/file", "user.a", b"2"),
        fs.getxattr("/file", "user.a"),
    ),
    "list": lambda fs: (
        fs.setxattr("/file", "user.b", b"2"),
        fs.setxattr("/file", "user.a", b"1"),
        sorted(fs.listxattr("/file")),
    ),
    "list none": lambda fs: [name for name in fs.listxattr("/file") if name.startswith("user.")],
    "remove": lambda fs: (
        fs.setxattr("/file", "user.a", b"1"),
        fs.removexattr("/file", "user.a"),
        fs.listxattr("/file"),
    ),
    "remove missing": lambda fs: fs.removexattr("/file", "user.none"),
    "create": lambda fs: fs.setxattr("/file", "user.a", b"1", os.XATTR_CREATE),
    "create exists": lambda fs: (
        fs.setxattr("/file", "user.a", b"1"),
        fs.setxattr("/file", "user.a", b"1", os.XATTR_CREATE),
    ),
    "replace missing": lambda fs: fs.setxattr("/file", "user.a", b"1", os.XATTR_REPLACE),
    "on a directory": lambda fs: (fs.setxattr("/dir", "user.a", b"1"), fs.listxattr("/dir")),
    "through a link": lambda fs: (
        fs.setxattr("/to-file", "user.a", b"1"),
        fs.getxattr("/file", "user.a"),
    ),
    "missing file": lambda fs: fs.setxattr("/missing", "user.a", b"1"),
    "list missing file": lambda fs: fs.listxattr("/missing"),
    "large value": lambda fs: (
        fs.setxattr("/file", "user.a", b"v" * 3000),
        fs.getxattr("/file", "user.a"),
    ),
    "value too large": lambda fs: fs.setxattr("/file", "user.a", b"v" * 65537),
    "name too long": lambda fs: fs.setxattr("/file", "user." + "n" * 251, b"1"),
    "no namespace": lambda fs: fs.setxattr("/file", "plain", b"1"),
    "survives rename": lambda fs: (
        fs.setxattr("/file", "user.a", b"1"),
        fs.rename("/file", "/other"),
        fs.getxattr("/other", "user.a"),
    ),
}


@pytest.mark.parametrize("case", XATTRS.values(), ids=XATTRS.keys())
def test_xattr(pair: Pair, case: Action) -> None:
    pair.both(tree)
    try:
        pair.host.setxattr("/empty", "user.probe", b"")
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            pytest.skip("this kernel's tmpfs has no extended attributes of users")
        raise
    pair.both(case)


def test_many_xattrs(fs: FileSystem) -> None:
    fs.write_bytes("/f", b"")
    values = {f"user.{number}": bytes([number]) * number for number in range(60)}
    for name, value in values.items():
        fs.setxattr("/f", name, value)
    assert {name: fs.getxattr("/f", name) for name in fs.listxattr("/f")} == values
    for name in values:
        fs.removexattr("/f", name)
    assert fs.listxattr("/f") == []

"""Runs the command in this process, on a running engine whose arena it knows as `demo`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

import nova_mp
from nova_mp.cli.main import main
from nova_mp.client.base import FileSystem


@dataclass(frozen=True)
class Result:
    """What a command did: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The object that --json prints, and nothing else."""
        value = json.loads(self.out)
        assert value["output_version"] == 1
        return dict(value)


class Cli:
    """Runs the command; `names` are what it calls arenas, whose own names no test can know."""

    def __init__(
        self,
        demo: FileSystem,
        names: dict[str, str],
        patch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self.demo = demo
        self.names = names
        self._capsys = capsys
        attach = nova_mp.attach
        patch.setattr(nova_mp, "attach", lambda name: attach(self.names.get(name, name)))

    def __call__(self, *args: str) -> Result:
        self._capsys.readouterr()
        code = main(list(args))
        captured = self._capsys.readouterr()
        return Result(code, captured.out, captured.err)


def contents(fs: FileSystem, top: str) -> dict[str, str]:
    """Every path below `top` with its contents or target."""
    found = {}
    for folder, directories, files in fs.walk(top):
        for name in [*directories, *files]:
            path = f"{folder.rstrip('/')}/{name}"
            if fs.islink(path):
                text = f"-> {fs.readlink(path)}"
            else:
                text = "/" if fs.isdir(path) else fs.read_text(path)
            found[path[len(top) :].lstrip("/")] = text
    return found

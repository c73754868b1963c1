"""Prints what pyproject.toml asks for to build, run and test: one requirement a line, for pip."""

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
wanted = project["build-system"]["requires"] + project["project"]["dependencies"]
print("\n".join(wanted + project["project"]["optional-dependencies"]["dev"]))

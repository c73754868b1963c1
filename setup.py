"""Builds the native core: one extension per nova_mp/core/*.pyx, whatever set of them is present.

Everything else about the package is declared in pyproject.toml. The environment changes this:

NOVA_MP_DEBUG=1   compiles with -DNV_DEBUG -O1 and with bounds checks in Cython. The two builds
                  share no C files; give it a build directory too (`make debug`: build/debug).
NOVA_MP_JOBS=N    translates and compiles N modules at a time; 2 unless told otherwise.
NOVA_MP_CORE=0    leaves the core out: `make venv` installs the package as a link to this tree, and
                  the core is then built in place, once and not a second time in pip's own folder.

Whatever Cython has to say about a module of the core fails the build. A performance hint there
means that a call takes the GIL or that an index is a Python object, 40 ns and more on a path whose
whole budget is 200 ns.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CORE = Path("nova_mp") / "core"
DEBUG = os.environ.get("NOVA_MP_DEBUG", "") not in ("", "0")
JOBS = int(os.environ.get("NOVA_MP_JOBS", "2"))
CORE_WANTED = os.environ.get("NOVA_MP_CORE", "1") != "0"

# On disk these stand at the top level; installed they are subpackages of nova_mp. For imports from
# a source tree that was built in place, links (ignored by git) put them there.
OUTSIDE = {"workers": "workers", "bench": "bench", "presets": "config"}

DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "cdivision": True,
    "embedsignature": True,
    "initializedcheck": False,
}

# The medium is read as bytes, words and structs alike, hence no strict aliasing. Cython emits
# helpers and labels that a module need not use, and compares its sizes of either sign, so those
# three warnings carry no news in its output.
C_FLAGS = [
    "-O1" if DEBUG else "-O2",
    "-g0",
    "-fno-strict-aliasing",
    "-Wall",
    "-Werror",
    "-Wno-unused-function",
    "-Wno-unused-label",
    "-Wno-sign-compare",
]


def extensions() -> list[Extension]:
    """One extension per Cython module of the core, all rebuilt when a C header changes."""
    headers = sorted(str(path.relative_to(ROOT)) for path in (ROOT / CORE).glob("*.h"))
    return [
        Extension(
            f"nova_mp.core.{path.stem}",
            [str(path.relative_to(ROOT))],
            include_dirs=[str(CORE)],
            depends=headers,
            define_macros=[("NV_DEBUG", "1")] if DEBUG else [],
            extra_compile_args=C_FLAGS,
        )
        for path in sorted((ROOT / CORE).glob("*.pyx"))
    ]


@contextmanager
def stderr_of_children() -> Iterator[list[str]]:
    """Collects what this process and its children write to descriptor 2, and passes it on."""
    lines: list[str] = []
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield lines
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            text = sink.read().decode(errors="replace")
            sys.stderr.write(text)
            lines += text.splitlines()


def translate(modules: list[Extension]) -> list[Extension]:
    """Runs Cython on what changed; raises SystemExit when it warns or gives a performance hint."""
    from Cython.Build import cythonize

    c_dir = ROOT / "build" / ("cython-debug" if DEBUG else "cython")
    before = {path: path.stat().st_mtime_ns for path in c_dir.rglob("*.c")}
    with stderr_of_children() as lines:
        result = cythonize(
            modules,
            build_dir=str(c_dir.relative_to(ROOT)),
            compiler_directives=DIRECTIVES,
            nthreads=min(JOBS, len(modules)) if JOBS > 1 else 0,
        )
    noise = [line for line in lines if line.startswith(("warning: ", "performance hint: "))]
    if noise:
        # Without these files the next run meets the same modules, and the same complaint, again.
        for path in c_dir.rglob("*.c"):
            if path.stat().st_mtime_ns != before.get(path):
                path.unlink()
        raise SystemExit(f"setup.py: {len(noise)} complaints of Cython; in core/ that is an error")
    return list(result)


class BuildCore(build_ext):
    """build_ext with the project's directives, in parallel, for what has changed."""

    def finalize_options(self) -> None:
        modules = self.distribution.ext_modules
        if modules:
            self.distribution.ext_modules = translate(modules)
        super().finalize_options()
        if self.parallel is None:
            self.parallel = JOBS

    def run(self) -> None:
        super().run()
        if self.inplace or getattr(self, "editable_mode", False):
            link_outside_packages()


def link_outside_packages() -> None:
    """Links workers/, bench/ and config/ into nova_mp/, leaving real directories alone."""
    for name, folder in OUTSIDE.items():
        link = ROOT / "nova_mp" / name
        if (ROOT / folder).is_dir() and not link.exists():
            if link.is_symlink():
                link.unlink()
            link.symlink_to(Path("..") / folder, target_is_directory=True)


def packages() -> dict[str, str]:
    """The packages of the tree as {dotted name: folder}."""
    found = {"nova_mp": "nova_mp"}
    for folder in sorted((ROOT / "nova_mp").iterdir()):
        if not folder.is_symlink() and any(folder.glob("*.py")):
            found[f"nova_mp.{folder.name}"] = f"nova_mp/{folder.name}"
    for name, outside in OUTSIDE.items():
        if (ROOT / outside).is_dir():
            found[f"nova_mp.{name}"] = outside
    return found


if __name__ == "__main__":
    os.chdir(ROOT)
    if shutil.which(os.environ.get("CC", "gcc").split()[0]) is None and "build_ext" in sys.argv:
        raise SystemExit("setup.py: no C compiler found; install gcc or set CC")
    mapping = packages()
    setup(
        packages=list(mapping),
        package_dir=mapping,
        package_data={"nova_mp.core": ["*.pxd", "*.h"], "nova_mp.presets": ["*.toml"]},
        ext_modules=extensions() if CORE_WANTED else [],
        cmdclass={"build_ext": BuildCore},
    )

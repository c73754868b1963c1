"""Open files, attached and remote: contents against tmpfs, and `io` as Python has it."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model.differential import Pair

from nova_mp.client.base import FileSystem

Action = Callable[[FileSystem], Any]
BLOCK = 4096


def pattern(length: int, seed: int = 1) -> bytes:
    """Bytes without a period that a block could hide."""
    return random.Random(seed).randbytes(length)


# ---------------------------------------------------------------------------- modes of open

MODES = ["rb", "wb", "ab", "xb", "r+b", "w+b", "a+b", "x+b", "r", "w", "a", "x", "r+", "w+", "a+"]


@pytest.mark.parametrize("there", [True, False], ids=["there", "missing"])
@pytest.mark.parametrize("mode", MODES)
def test_modes(pair: Pair, mode: str, there: bool) -> None:
    """What each mode allows, where it starts, and what it leaves."""

    def use(fs: FileSystem) -> Any:
        binary = "b" in mode
        seen: list[Any] = []
        with fs.open("/f", mode) as file:
            seen.append((file.readable(), file.writable(), file.seekable(), file.tell()))
            for attempt in (
                lambda: file.read(3),
                lambda: file.write(b"XY" if binary else "XY"),
                lambda: file.seek(0, 2),
                file.read,
                lambda: file.seek(1),
                lambda: file.write(b"Z" if binary else "Z"),
                file.tell,
            ):
                try:
                    seen.append(attempt())
                except OSError as error:
                    seen.append(type(error).__name__)
        return seen

    if there:
        pair.both(lambda fs: fs.write_bytes("/f", b"0123456789"))
    pair.both(use)
    pair.same_contents()


@pytest.mark.parametrize(
    "mode", ["", "q", "rw", "rr", "r+w", "bt", "rbt", "+", "b", "U", "wa", "xw", "r++"]
)
def test_bad_modes(pair: Pair, mode: str) -> None:
    pair.both(lambda fs: fs.open("/f", mode))
    pair.same_contents()


@pytest.mark.parametrize(
    "arguments",
    [
        {"mode": "rb", "encoding": "utf-8"},
        {"mode": "rb", "errors": "strict"},
        {"mode": "rb", "newline": "\n"},
        {"mode": "r", "buffering": 0},
        {"mode": "r", "encoding": "no-such-codec"},
        {"mode": "r", "newline": "x"},
    ],
    ids=str,
)
def test_bad_arguments(fs: FileSystem, arguments: dict[str, Any]) -> None:
    fs.write_bytes("/f", b"")
    with pytest.raises((ValueError, LookupError)):
        fs.open("/f", **arguments)


def test_defaults_to_binary(fs: FileSystem) -> None:
    fs.write_bytes("/f", b"\xff")
    with fs.open("/f") as file:
        assert file.read() == b"\xff"
        assert file.mode == "rb"
        assert file.name == "/f"


def test_permissions_of_created_files(pair: Pair) -> None:
    """The umask of this process holds, and the engine has the same from it."""
    pair.both(lambda fs: fs.os_open("/f", os.O_CREAT | os.O_WRONLY, 0o640).close())
    pair.both(lambda fs: fs.os_open("/g", os.O_CREAT | os.O_WRONLY, 0o4777).close())
    pair.both(lambda fs: fs.open("/h", "wb").close())
    pair.both(lambda fs: fs.make_dir("/d"))
    pair.same_contents()


# ---------------------------------------------------------------------------- reading and writing

LENGTHS = [0, 1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 17]


@pytest.mark.parametrize("offset", LENGTHS)
@pytest.mark.parametrize("length", LENGTHS)
def test_pwrite_anywhere(pair: Pair, offset: int, length: int) -> None:
    """Overwrites, extensions and holes at every alignment, on a file of two blocks and a half."""

    def write(fs: FileSystem) -> Any:
        fs.write_bytes("/f", pattern(2 * BLOCK + BLOCK // 2))
        with fs.open("/f", "r+b") as file:
            written = file.pwrite(pattern(length, 2), offset)
            return written, file.tell(), file.stat().st_size, file.pread(20_000, 0)

    pair.both(write)
    pair.same_contents()


@pytest.mark.parametrize("size", LENGTHS)
@pytest.mark.parametrize("grown", [BLOCK, 5 * BLOCK + 3])
def test_what_was_cut_off_reads_as_zeros(pair: Pair, size: int, grown: int) -> None:
    def cut(fs: FileSystem) -> Any:
        fs.write_bytes("/f", pattern(4 * BLOCK))
        fs.truncate("/f", size)
        fs.truncate("/f", grown)
        with fs.open("/f", "r+b") as file:
            before = file.read()
            file.truncate(size // 2)
            file.pwrite(b"end", grown + 100)
            return before, file.pread(40_000, 0)

    pair.both(cut)
    pair.same_contents()


def test_sparse_files(pair: Pair) -> None:
    def sparse(fs: FileSystem) -> Any:
        with fs.open("/f", "w+b") as file:
            file.seek(1 << 30)
            file.write(b"far away")
            size = file.stat().st_size
            return (
                size,
                file.pread(16, (1 << 30) - 8),
                file.pread(8, 123_456),
                file.pread(9, 1 << 31),
            )

    pair.both(sparse)
    assert pair.fs.stat("/f").st_blocks * 512 < 1 << 20
    pair.both(lambda fs: fs.truncate("/f", 0))
    assert pair.fs.stat("/f").st_blocks == 0


def test_holes_stay_holes(fs: FileSystem) -> None:
    with fs.open("/f", "w+b") as file:
        for block in range(0, 64, 2):
            file.pwrite(pattern(BLOCK, block), block * BLOCK)
        assert file.stat().st_blocks == 32 * 8
        for block in range(64):
            found = file.pread(BLOCK, block * BLOCK)
            expected = (
                b"" if block == 63 else pattern(BLOCK, block) if block % 2 == 0 else bytes(BLOCK)
            )
            assert found == expected


@pytest.mark.parametrize("size", [1 << 20, (5 << 20) + 4321])
def test_large_files(fs: FileSystem, size: int) -> None:
    data = pattern(size)
    assert fs.write_bytes("/f", data) == size
    assert fs.read_bytes("/f") == data
    with fs.open("/f", "r+b") as file:
        assert file.pread(size, 1) == data[1:]
        buffer = bytearray(size)
        assert file.preadinto(buffer, 0) == size
        assert buffer == data
        change = pattern(1 << 19, 3)
        assert file.pwrite(change, 777_777) == len(change)
        assert file.pread(1 << 19, 777_777) == change
        assert file.stat().st_size == max(size, 777_777 + len(change))


@pytest.mark.parametrize("offset", [-1, -(1 << 40)])
def test_negative_offsets(pair: Pair, offset: int) -> None:
    pair.both(lambda fs: fs.write_bytes("/f", b"x"))

    def at(action: Callable[[Any], Any]) -> Action:
        def run(fs: FileSystem) -> Any:
            with fs.open("/f", "r+b") as file:
                try:
                    return action(file)
                except OSError as error:
                    # Whether errors of open files have the file's name differs from call to call.
                    return error.errno

        return run

    pair.both(at(lambda file: file.pread(1, offset)))
    pair.both(at(lambda file: file.preadinto(bytearray(1), offset)))
    pair.both(at(lambda file: file.pwrite(b"y", offset)))
    pair.both(at(lambda file: file.truncate(offset)))
    pair.both(at(lambda file: file.seek(offset)))
    pair.same_contents()


def test_reading_at_and_beyond_the_end(fs: FileSystem) -> None:
    fs.write_bytes("/f", b"abc")
    with fs.open("/f") as file:
        assert [file.pread(10, offset) for offset in (0, 2, 3, 4, 1 << 40)] == [
            b"abc",
            b"c",
            b"",
            b"",
            b"",
        ]
        assert file.pread(0, 0) == b""
        assert file.seek(100) == 100
        assert file.read() == b""
        assert file.read(5) == b""
        assert file.tell() == 100
        buffer = bytearray(b"........")
        assert file.preadinto(buffer, 1) == 2
        assert buffer == b"bc......"


def test_append_always_goes_to_the_end(fs: FileSystem) -> None:
    with fs.open("/f", "ab") as first, fs.open("/f", "ab") as second:
        for number in range(20):
            (first if number % 2 else second).write(b"%02d" % number)
        first.seek(0)
        first.write(b"!")
        assert first.tell() == 41
    assert fs.read_bytes("/f") == b"".join(b"%02d" % number for number in range(20)) + b"!"


def test_fallocate(fs: FileSystem) -> None:
    fs.write_bytes("/f", b"begin")
    with fs.open("/f", "r+b") as file:
        file.fallocate(0, 10 * BLOCK)
        assert file.stat().st_size == 10 * BLOCK
        assert file.stat().st_blocks == 10 * 8
        assert file.read() == b"begin" + bytes(10 * BLOCK - 5)
        file.fallocate(BLOCK, BLOCK)
        assert file.stat().st_size == 10 * BLOCK
        with pytest.raises(OSError):
            file.fallocate(-1, BLOCK)
        with pytest.raises(OSError):
            file.fallocate(0, 0)


def test_buffers_of_every_kind(fs: FileSystem) -> None:
    with fs.open("/f", "w+b") as file:
        file.write(bytearray(b"ab"))
        file.write(memoryview(b"cdef")[::1])
        file.write(numpy.arange(3, dtype="<u4"))
        file.pwrite(numpy.array([[1, 2], [3, 4]], dtype="<u2"), 100)
        with pytest.raises(TypeError):
            file.write("text")
        with pytest.raises(TypeError):
            file.write(None)
        with pytest.raises((TypeError, BufferError, ValueError)):
            file.preadinto(b"read-only", 0)
        into = numpy.zeros(4, dtype="<u2")
        assert file.preadinto(into, 100) == 8
    assert list(into) == [1, 2, 3, 4]
    assert fs.read_bytes("/f")[:18] == b"abcdef" + numpy.arange(3, dtype="<u4").tobytes()


# ---------------------------------------------------------------------------- lifetime


def test_unlinked_files_stay_readable(fs: FileSystem) -> None:
    data = pattern(3 * BLOCK)
    fs.write_bytes("/f", data)
    with fs.open("/f", "r+b") as file:
        fs.unlink("/f")
        assert not fs.exists("/f")
        assert file.stat().st_nlink == 0
        assert file.read() == data
        file.pwrite(b"more", 5 * BLOCK)
        assert file.pread(4, 5 * BLOCK) == b"more"
        fs.write_bytes("/f", b"another")
        assert file.pread(10, 0) == data[:10]
    assert fs.read_bytes("/f") == b"another"


def test_replaced_files_stay_readable(fs: FileSystem) -> None:
    fs.write_bytes("/old", b"old")
    fs.write_bytes("/new", b"new")
    with fs.open("/old") as file:
        fs.rename("/new", "/old")
        assert file.read() == b"old"
    assert fs.read_bytes("/old") == b"new"


def test_open_files_follow_renames(fs: FileSystem) -> None:
    with fs.open("/f", "w+b") as file:
        fs.mkdir("/d")
        fs.rename("/f", "/d/g")
        file.write(b"written after")
    assert fs.read_bytes("/d/g") == b"written after"


def test_space_of_unlinked_open_files_comes_back(fs: FileSystem) -> None:
    fs.write_bytes("/warm", b"x")
    fs.unlink("/warm")
    before = fs.statvfs("/").f_bfree
    with fs.open("/f", "wb") as file:
        file.write(bytes(1 << 20))
        fs.unlink("/f")
        assert before - fs.statvfs("/").f_bfree >= 256
    assert before - fs.statvfs("/").f_bfree < 16


def test_closed_files_refuse(fs: FileSystem) -> None:
    file = fs.open("/f", "w+b")
    assert not file.closed
    file.close()
    file.close()
    assert file.closed
    for action in (
        file.read,
        lambda: file.write(b"x"),
        lambda: file.pread(1, 0),
        lambda: file.pwrite(b"x", 0),
        file.tell,
        lambda: file.seek(0),
        lambda: file.truncate(0),
        file.stat,
        file.fsync,
        file.readable,
        file.__enter__,
    ):
        with pytest.raises(ValueError):
            action()


def test_wrong_direction_is_refused(fs: FileSystem) -> None:
    fs.write_bytes("/f", b"abc")
    with fs.open("/f", "rb") as reader:
        for refused in (
            lambda: reader.write(b"x"),
            lambda: reader.pwrite(b"x", 0),
            lambda: reader.truncate(0),
        ):
            with pytest.raises(OSError):
                refused()
    with fs.open("/f", "ab") as writer:
        for refused in (writer.read, lambda: writer.pread(1, 0)):
            with pytest.raises(OSError):
                refused()
    assert fs.read_bytes("/f") == b"abc"


def test_fileno_is_not_supported(fs: FileSystem) -> None:
    with fs.open("/f", "wb") as file, pytest.raises(io.UnsupportedOperation):
        file.fileno()


# ---------------------------------------------------------------------------- io protocols


def test_lines(pair: Pair) -> None:
    text = b"".join(b"line %d\n" % number * (number % 4 + 1) for number in range(500)) + b"last"
    pair.both(lambda fs: fs.write_bytes("/f", text))

    def using(action: Callable[[Any], Any]) -> Action:
        def run(fs: FileSystem) -> Any:
            with fs.open("/f", "rb") as file:
                return action(file), file.tell()

        return run

    pair.both(using(list))
    pair.both(using(lambda file: file.readlines()))
    pair.both(using(lambda file: [file.readline() for _ in range(5)]))
    pair.both(using(lambda file: [file.readline(3) for _ in range(9)]))
    pair.both(using(lambda file: (file.readline(), file.read(10), file.readline())))
    pair.both(using(lambda file: (file.seek(-6, 2), file.readline(), file.readline())))
    pair.both(using(lambda file: (file.readline(), file.tell(), file.seek(1, 1), file.read(4))))
    pair.both(using(lambda file: (file.read(7), file.readall())))
    assert pair.fs.read_bytes("/f") == text


def test_lines_and_writes_agree(fs: FileSystem) -> None:
    fs.write_bytes("/f", b"one\ntwo\nthree\n")
    with fs.open("/f", "r+b") as file:
        assert file.readline() == b"one\n"
        file.write(b"TWO")
        assert file.tell() == 7
        assert file.readline() == b"\n"
        assert file.readline() == b"three\n"


@pytest.mark.parametrize("newline", [None, "", "\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_text(pair: Pair, encoding: str, newline: str | None) -> None:
    text = "first\nsecond äöü\r\nthird\rlast"

    def write_and_read(fs: FileSystem) -> Any:
        with fs.open("/f", "w", encoding=encoding, newline=newline) as file:
            file.write(text)
        with fs.open("/f", "r+", encoding=encoding, newline=newline) as file:
            lines = list(file)
            file.write("\nappended")
            file.seek(0)
            first = file.readline()
            cookie = file.tell()
            rest = file.read()
            file.seek(cookie)
            return lines, first, rest, file.read() == rest, file.encoding

    pair.both(write_and_read)
    pair.same_contents()


def test_text_helpers(pair: Pair) -> None:
    pair.both(lambda fs: fs.write_text("/f", "grüße\n" * 1000))
    pair.both(lambda fs: fs.read_text("/f"))
    pair.both(lambda fs: fs.write_text("/f", "ä", encoding="latin-1"))
    pair.both(lambda fs: fs.read_text("/f"))
    pair.both(lambda fs: fs.read_text("/f", errors="replace"))
    pair.same_contents()


def test_pickle_json_csv_zip_numpy(fs: FileSystem) -> None:
    values = {"numbers": list(range(50_000)), "bytes": pattern(100_000), "text": "ä" * 1000}
    with fs.open("/p", "wb") as file:
        pickle.dump(values, file, protocol=5)
    with fs.open("/p", "rb") as file:
        assert pickle.load(file) == values
    with fs.open("/j", "w", encoding="utf-8") as file:
        json.dump(values["numbers"], file)
    with fs.open("/j", "r", encoding="utf-8") as file:
        assert json.load(file) == values["numbers"]
    with fs.open("/c", "w", newline="") as file:
        csv.writer(file).writerows([[1, "a,b"], [2, 'say "x"']])
    with fs.open("/c", "r", newline="") as file:
        assert list(csv.reader(file)) == [["1", "a,b"], ["2", 'say "x"']]
    with fs.open("/z", "w+b") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inner", values["bytes"])
        with zipfile.ZipFile(file) as archive:
            assert archive.read("inner") == values["bytes"]
    array = numpy.random.default_rng(1).normal(size=(300, 200))
    with fs.open("/n", "wb") as file:
        numpy.save(file, array)
    with fs.open("/n", "rb") as file:
        assert (numpy.load(file) == array).all()


def test_io_wrappers(fs: FileSystem) -> None:
    """What takes any binary stream takes these files."""
    fs.write_bytes("/f", pattern(100_000))
    with fs.open("/f", "rb") as file:
        assert isinstance(file, io.IOBase | io.BufferedIOBase)
        buffered = io.BufferedReader(file, 1000)
        assert buffered.read(10) == pattern(100_000)[:10]
        assert buffered.read() == pattern(100_000)[10:]
        buffered.detach()
    with fs.open("/f", "rb") as file:
        wrapped = io.TextIOWrapper(file, encoding="latin-1")
        assert len(wrapped.read()) > 0
        wrapped.detach()


# ---------------------------------------------------------------------------- pipelines


def test_pipeline(fs: FileSystem) -> None:
    with fs.open("/f", "w+b") as file:
        with fs.pipeline() as batch:
            for number in range(300):
                batch.pwrite(file, b"%08d" % number, number * 8)
            size = batch.fstat(file)
            found = [batch.pread(file, 8, number * 8) for number in range(300)]
            into = bytearray(16)
            filled = batch.preadinto(file, into, 8)
            status = batch.stat("/f")
            names = batch.listdir("/")
            batch.write_bytes("/g", b"whole")
            whole = batch.read_bytes("/g")
        assert size.result().st_size == status.result().st_size == 2400
        assert [result.result() for result in found] == [b"%08d" % n for n in range(300)]
        assert filled.result() == 16
        assert into == b"0000000100000002"
        assert names.result() == ["f"]
        assert whole.result() == b"whole"


def test_pipeline_results_within(fs: FileSystem) -> None:
    with fs.pipeline() as batch:
        batch.make_dir("/d")
        made = batch.stat("/d")
        assert made.result().st_nlink == 2
        assert made.done()
        batch.rename("/d", "/e")
        batch.rmdir("/e")
        missing = batch.stat("/e")
        assert isinstance(missing.exception(), FileNotFoundError)
        with pytest.raises(FileNotFoundError) as caught:
            missing.result()
        assert caught.value.filename == "/e"
    assert fs.listdir("/") == []


def test_pipeline_raises_what_nobody_saw(fs: FileSystem) -> None:
    with pytest.raises(FileNotFoundError), fs.pipeline() as batch:
        batch.write_bytes("/before", b"")
        batch.unlink("/missing")
        batch.write_bytes("/after", b"")
    assert sorted(fs.listdir("/")) == ["after", "before"]
    with fs.pipeline() as batch:
        batch.raise_errors = False
        batch.unlink("/missing")


def test_pipeline_of_large_payloads(fs: FileSystem) -> None:
    data = pattern(3 << 20)
    with fs.open("/f", "w+b") as file:
        with fs.pipeline() as batch:
            for number in range(6):
                batch.pwrite(file, data, number * len(data))
            found = [batch.pread(file, len(data), number * len(data)) for number in range(6)]
        assert all(result.result() == data for result in found)


# ---------------------------------------------------------------------------- at random

OFFSETS = st.integers(0, 6 * BLOCK) | st.sampled_from(
    [0, BLOCK - 1, BLOCK, 2 * BLOCK, 5 * BLOCK + 1]
)
SIZES = st.integers(0, 3 * BLOCK) | st.sampled_from([1, BLOCK, 2 * BLOCK])
FILE_STEPS = st.one_of(
    st.tuples(st.just("pwrite"), SIZES, OFFSETS),
    st.tuples(st.just("pread"), SIZES, OFFSETS),
    st.tuples(st.just("write"), SIZES),
    st.tuples(st.just("read"), SIZES),
    st.tuples(st.just("seek"), OFFSETS),
    st.tuples(st.just("truncate"), OFFSETS),
    st.tuples(st.just("fallocate"), OFFSETS, SIZES.filter(bool)),
    st.tuples(st.just("tell")),
)


@given(steps=st.lists(FILE_STEPS, max_size=30), seed=st.integers(0, 2**16))
@settings(max_examples=60)
def test_random_steps_on_a_file(pair: Pair, steps: list[tuple[Any, ...]], seed: int) -> None:
    def run(fs: FileSystem) -> Any:
        seen = []
        with fs.open("/f", "w+b") as file:
            for number, (name, *arguments) in enumerate(steps):
                if name in ("pwrite", "write"):
                    arguments[0] = pattern(arguments[0], seed + number)
                seen.append((name, getattr(file, name)(*arguments)))
            seen.append((file.stat().st_size, file.pread(1 << 20, 0)))
        return seen

    pair.both(run)
    pair.same_contents()

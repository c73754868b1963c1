"""Mapped files that are read, written, cut, extended and removed meanwhile."""

from __future__ import annotations

import pytest
from crashsim.arena import Arena, arena
from crashsim.mapped import mapped, rests, shown
from t2_crash.defects_help import exact, get, ids, put, sound

# ------------------------------------------------------------------------------------- coherence


def test_reads_and_writes_agree_with_stores(protected: Arena) -> None:
    fs = protected.fs
    put(fs, "/file", b"." * 20000)
    with fs.open("/file", "r+b") as file, file.mmap() as m, memoryview(m) as view:
        file.pwrite(b"written", 4093)
        assert bytes(view[4093:4100]) == b"written"
        view[8190:8196] = b"stored"
        assert file.pread(6, 8190) == b"stored"
        made = fs.snapshot_create(None)
        before = get(fs, "/file")
        file.pwrite(b"WRITTEN", 4093)
        view[8190:8196] = b"STORED"
        file.pwrite(bytes(view[:5000]), 10000)
        assert shown(fs, made) == before
        assert bytes(view) == get(fs, "/file")
    rests(protected)


def test_growing_while_mapped(a: Arena) -> None:
    put(a.fs, "/file", b"x" * 5000)
    with a.fs.open("/file", "r+b") as file, file.mmap() as m, memoryview(m) as view:
        file.pwrite(b"y" * 3000, 20000)
        file.truncate(50000)
        file.fallocate(50000, 8192)
        view[4999] = ord("z")
        wanted = b"x" * 4999 + b"z" + bytes(15000) + b"y" * 3000 + bytes(35192)
        assert get(a.fs, "/file") == wanted
        with file.mmap() as whole, memoryview(whole) as all_of_it:
            assert bytes(all_of_it) == wanted
    rests(a)


def test_shrinking_while_mapped(protected: Arena) -> None:
    """Blocks stay under the mapping, and show zeros when the file grows over them again."""
    fs = protected.fs
    put(fs, "/file", b"x" * 40000)
    made = fs.snapshot_create(None)
    m = mapped(fs, "/file")
    view = memoryview(m)
    fs.truncate("/file", 5000)
    assert get(fs, "/file") == b"x" * 5000
    assert bytes(view[5000:]) == bytes(35000)
    view[6000] = view[30000] = 1
    assert get(fs, "/file") == b"x" * 5000
    second = fs.snapshot_create(None)
    fs.truncate("/file", 20000)
    assert get(fs, "/file") == b"x" * 5000 + bytes(15000)
    put(fs, "/file", b"end", 35000)
    assert get(fs, "/file") == b"x" * 5000 + bytes(30000) + b"end"
    fs.truncate("/file", 100)
    view[200] = 1
    exact(protected)
    view.release()
    m.close()
    assert fs.stat("/file").st_blocks == 8
    fs.truncate("/file", 40000)
    assert get(fs, "/file") == b"x" * 100 + bytes(39900)
    assert shown(fs, made) == b"x" * 40000
    assert shown(fs, second) == b"x" * 5000
    rests(protected)


@pytest.mark.parametrize("grow", ["write", "append", "truncate", "fallocate", "map"])
@pytest.mark.parametrize("snapshots", [False, True])
@pytest.mark.parametrize("collected", [False, True])
def test_growing_after_a_crash(a: Arena, grow: str, snapshots: bool, collected: bool) -> None:
    """Power fails while pages lie past the end of a mapped file: they never come to light."""
    data = b"x" * 3_000_000
    put(a.fs, "/file", data)
    m = mapped(a.fs, "/file")
    view = memoryview(m)
    made = a.fs.snapshot_create(None) if snapshots else 0
    a.fs.truncate("/file", 5000)
    view[5000:] = b"p" * 2_995_000
    if collected:
        with a.fs.open("/file", "r+b") as file:
            for number in range(300):
                a.fs.chmod("/file", 0o600 + number % 8)
                file.pwrite(b"x", number)
        a.fs.gc()
    with arena(image=a.image()) as crashed:
        fs = crashed.fs
        sound(crashed.image())
        assert get(fs, "/file") == b"x" * 5000
        with fs.open("/file", "r+b") as file:
            if grow == "write":
                file.pwrite(b"e", 2_999_999)
            elif grow == "append":
                with fs.open("/file", "ab") as end:
                    end.write(b"e")
                file.truncate(3_000_000)
            elif grow == "truncate":
                file.truncate(3_000_000)
            elif grow == "fallocate":
                file.fallocate(2_000_000, 1_000_000)
            else:
                with file.mmap():
                    file.truncate(3_000_000)
        wanted = bytearray(b"x" * 5000 + bytes(2_995_000))
        if grow == "write":
            wanted[-1:] = b"e"
        elif grow == "append":
            wanted[5000:5001] = b"e"
        assert get(fs, "/file") == wanted
        if made:
            assert shown(fs, made) == data
        rests(crashed)
    view.release()
    m.close()
    rests(a)


def test_a_hole_written_behind_a_truncation(a: Arena) -> None:
    """What says the size again, once the log is collected, does not hide that it was cut."""
    put(a.fs, "/file", b"x" * 40000, 4096)
    with a.fs.open("/file", "r+b") as file:
        m = file.mmap(8192, 20000)
        file.truncate(9000)
        with memoryview(m) as view:
            view[5000:] = b"p" * 15000
        file.pwrite(b"h", 0)
        for number in range(300):
            file.pwrite(b"%d" % number, 0)
        a.fs.gc()
        with arena(image=a.image()) as crashed:
            crashed.fs.truncate("/file", 40000)
            assert get(crashed.fs, "/file")[9000:] == bytes(31000)
            rests(crashed)
        m.close()
    rests(a)


def test_removed_and_renamed_while_mapped(protected: Arena) -> None:
    fs = protected.fs
    put(fs, "/file", b"f" * 20000)
    put(fs, "/second", b"s" * 20000)
    made = fs.snapshot_create(None)
    first, second = mapped(fs, "/file"), mapped(fs, "/second")
    views = [memoryview(m) for m in (first, second)]
    fs.rename("/second", "/file")
    fs.snapshot_create(None)
    views[0][:5] = b"gone!"
    views[1][:5] = b"there"
    assert get(fs, "/file") == b"there" + b"s" * 15000 + b"s" * 4995
    fs.unlink("/file")
    views[1][10000] = 1
    put(fs, "/new", b"n" * 2_000_000)
    assert bytes(views[0]) == b"gone!" + b"f" * 19995
    for view in views:
        view.release()
    exact(protected)
    first.close()
    second.close()
    assert shown(fs, made) == b"f" * 20000
    assert shown(fs, made, "/second") == b"s" * 20000
    rests(protected)
    for epoch_id in ids(fs):
        fs.snapshot_delete(epoch_id)
    rests(protected)
    assert fs.stats()["blocks"]["held"] == 0


def test_a_removed_file_that_is_mapped_when_power_fails(a: Arena) -> None:
    put(a.fs, "/file", b"f" * 20000)
    a.fs.snapshot_create(None)
    m = mapped(a.fs, "/file")
    a.fs.unlink("/file")
    with memoryview(m) as view:
        view[:] = b"g" * 20000
    with arena(image=a.image()) as crashed:
        assert crashed.fs.listdir("/") == []
        rests(crashed)
    m.close()
    rests(a)

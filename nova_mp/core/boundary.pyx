"""What every module of the boundary needs: path arguments, errors, modes, names of things."""

import itertools
import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.string cimport memchr
from nova_mp.core.arch cimport NV_DEBUG_BUILD
from nova_mp.core.dram cimport (MEDIA_DRAM, MEDIA_PMEM, MEDIA_REAL, ROLE_CLEANER, ROLE_CLIENT,
                                ROLE_COORDINATOR, ROLE_SUPERVISOR, ROLE_WORKER, WITHOUT_GRACE,
                                WITHOUT_HOLD, WITHOUT_SECOND_LOOK)

ROLES = {
    "client": ROLE_CLIENT,
    "worker": ROLE_WORKER,
    "coordinator": ROLE_COORDINATOR,
    "cleaner": ROLE_CLEANER,
    "supervisor": ROLE_SUPERVISOR,
}
MEDIA = {"dram": MEDIA_DRAM, "pmem": MEDIA_PMEM, "real": MEDIA_REAL}
OPERATIONS = [
    "none", "read", "write", "setattr", "create", "unlink", "rename", "link", "xattr", "open",
    "close",
    "lookup", "gc", "snapshot_create", "snapshot_delete", "clean", "evict", "mmap",
]
COUNTERS = {
    "read_bytes": 20, "write_bytes": 21, "lock_waits": 22, "read_retries": 23, "read_locked": 24,
    "repairs": 25, "epoch_retries": 26, "steals": 27, "gc_fast_pages": 28, "gc_thorough_pages": 29,
    "lock_wait_ns": 30, "list_appends": 31, "cleaned": 32, "timed_reads": 33, "timed_read_ns": 34,
    "timed_writes": 35, "timed_write_ns": 36, "timed_others": 37, "timed_other_ns": 38,
    "map_faults": 19, "preserved_pages": 39,
}
WITHOUT = {"grace": WITHOUT_GRACE, "second-look": WITHOUT_SECOND_LOOK, "hold": WITHOUT_HOLD}
DEBUG_BUILD = bool(NV_DEBUG_BUILD)


cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL


cdef object path_arg(object path, nv_path* p):
    """Bytes of a path argument, absolute and without NUL. Returns the object that owns them."""
    cdef object owner = path
    if type(path) is not str and type(path) is not bytes:
        owner = os.fspath(path)
    if isinstance(owner, str):
        try:
            p.text = PyUnicode_AsUTF8AndSize(owner, &p.length)
        except UnicodeEncodeError:
            owner = os.fsencode(owner)
    if isinstance(owner, bytes):
        p.text = PyBytes_AS_STRING(owner)
        p.length = PyBytes_GET_SIZE(owner)
    if memchr(p.text, 0, p.length) != NULL:
        raise ValueError("embedded null byte")
    if p.length and p.text[0] != 47:
        raise ValueError(f"path must be absolute: {path!r}")
    return owner


cdef object raise_errno(int64_t rc, object path, object path2):
    """Raises the OSError of a negative result."""
    cdef int code = <int>-rc
    if path2 is not None:
        raise OSError(code, os.strerror(code), os.fspath(path), None, os.fspath(path2))
    if path is not None:
        raise OSError(code, os.strerror(code), os.fspath(path))
    raise OSError(code, os.strerror(code))


cdef object decode(const char* text, Py_ssize_t length):
    return PyUnicode_DecodeUTF8(text, length, "surrogateescape")


_KINDS = {
    "r": (os.O_RDONLY, os.O_RDWR),
    "w": (os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_RDWR | os.O_CREAT | os.O_TRUNC),
    "x": (os.O_WRONLY | os.O_CREAT | os.O_EXCL, os.O_RDWR | os.O_CREAT | os.O_EXCL),
    "a": (os.O_WRONLY | os.O_CREAT | os.O_APPEND, os.O_RDWR | os.O_CREAT | os.O_APPEND),
}
# Every spelling of the binary modes.
MODES = {
    "".join(letters): flags
    for kind, both in _KINDS.items()
    for flags, plus in zip(both, ("", "+"), strict=True)
    for letters in itertools.permutations(kind + "b" + plus)
}


def parse_mode(mode):
    """(os.O_* flags, binary?) of a mode of Python's open(); ValueError as there."""
    flags = MODES.get(mode)
    if flags is not None:
        return flags, True
    letters = set(mode)
    if not isinstance(mode, str) or len(letters) != len(mode) or letters - set("rwxab+t"):
        raise ValueError(f"invalid mode: {mode!r}")
    if len(letters & set("rwxa")) != 1:
        raise ValueError("must have exactly one of create/read/write/append mode")
    if "t" in letters and "b" in letters:
        raise ValueError("can't have text and binary mode at once")
    kind = (letters & set("rwxa")).pop() + ("+" if "+" in letters else "") + "b"
    return MODES[kind], "b" in letters

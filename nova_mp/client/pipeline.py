"""Batches of operations whose results are asked for later.

    with fs.pipeline() as batch:
        sizes = [batch.stat(path) for path in paths]
        batch.pwrite(file, data, offset)
    print(sum(result.result().st_size for result in sizes))

Operations of one batch take effect in the order they were called in. Whoever leaves the block waits
for all of them, and gets the first error that nobody has looked at, so a failed write cannot pass
unnoticed; `raise_errors = False` leaves errors to the results. Ctrl-C gives up what has no result
yet; it may have been carried out or not, and the file system can be used on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from nova_mp.client.base import FileSystem


class Result:
    """The result of one operation of a pipeline, there now or later."""

    __slots__ = ("_done", "_error", "_pipeline", "_value", "seen")

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._done = False
        self._value: Any = None
        self._error: BaseException | None = None
        # Whether somebody has been told about the error.
        self.seen = False

    def done(self) -> bool:
        """Whether the operation has finished, well or not; never waits."""
        return self._done

    def result(self) -> Any:
        """What the operation returned; raises what it raised. Waits, sending the batch if it has
        not been sent."""
        error = self.exception()
        if error is not None:
            raise error
        return self._value

    def exception(self) -> BaseException | None:
        """The error of the operation, or None; waits as `result` does."""
        if not self._done:
            self._pipeline.complete(self)
        self.seen = True
        return self._error

    def set_result(self, value: Any) -> None:
        """For pipelines: the operation returned `value`."""
        self._value = value
        self._done = True

    def set_exception(self, error: BaseException) -> None:
        """For pipelines: the operation raised `error`."""
        self._error = error
        self._done = True


class Pipeline(ABC):
    """A batch being collected; the operations are those of FileSystem and of its files."""

    def __init__(self) -> None:
        self.raise_errors = True
        self._results: list[Result] = []

    @abstractmethod
    def submit(self, target: Any, operation: str, *args: Any, **kwargs: Any) -> Result:
        """Add `target.operation(*args, **kwargs)`; `target` is None for the file system."""

    @abstractmethod
    def flush(self) -> None:
        """Send what was collected, without waiting for results."""

    @abstractmethod
    def drop(self) -> None:
        """Give up what has no result yet: InterruptedError is its result."""

    @abstractmethod
    def complete(self, result: Result) -> None:
        """Wait until `result` is there."""

    def pread(self, file: Any, n: int, offset: int) -> Result:
        """`file.pread(n, offset)`."""
        return self.submit(file, "pread", n, offset)

    def preadinto(self, file: Any, buffer: Any, offset: int) -> Result:
        """`file.preadinto(buffer, offset)`; the buffer is filled once the result is there."""
        return self.submit(file, "preadinto", buffer, offset)

    def pwrite(self, file: Any, data: Any, offset: int) -> Result:
        """`file.pwrite(data, offset)`; `data` must not change until the result is there."""
        return self.submit(file, "pwrite", data, offset)

    def fsync(self, file: Any) -> Result:
        """`file.fsync()`."""
        return self.submit(file, "fsync")

    def fstat(self, file: Any) -> Result:
        """`file.stat()`."""
        return self.submit(file, "stat")

    def stat(self, path: Any, *, follow_symlinks: bool = True) -> Result:
        """`fs.stat(path)`."""
        return self.submit(None, "stat", path, follow_symlinks=follow_symlinks)

    def lstat(self, path: Any) -> Result:
        """`fs.lstat(path)`."""
        return self.submit(None, "lstat", path)

    def listdir(self, path: Any = "/") -> Result:
        """`fs.listdir(path)`."""
        return self.submit(None, "listdir", path)

    def read_bytes(self, path: Any) -> Result:
        """`fs.read_bytes(path)`."""
        return self.submit(None, "read_bytes", path)

    def write_bytes(self, path: Any, data: Any) -> Result:
        """`fs.write_bytes(path, data)`."""
        return self.submit(None, "write_bytes", path, data)

    def make_dir(self, path: Any, mode: int = 0o777) -> Result:
        """`fs.mkdir(path, mode)`."""
        return self.submit(None, "make_dir", path, mode)

    def unlink(self, path: Any) -> Result:
        """`fs.unlink(path)`."""
        return self.submit(None, "unlink", path)

    def rmdir(self, path: Any) -> Result:
        """`fs.rmdir(path)`."""
        return self.submit(None, "rmdir", path)

    def rename(self, src: Any, dst: Any, noreplace: bool = False) -> Result:
        """`fs.rename(src, dst, noreplace)`."""
        return self.submit(None, "rename", src, dst, noreplace)

    def truncate(self, path: Any, size: int) -> Result:
        """`fs.truncate(path, size)`."""
        return self.submit(None, "truncate", path, size)

    def chmod(self, path: Any, mode: int) -> Result:
        """`fs.chmod(path, mode)`."""
        return self.submit(None, "chmod", path, mode)

    def utime(self, path: Any, ns: tuple[int, int]) -> Result:
        """`fs.utime(path, ns=ns)`."""
        return self.submit(None, "utime", path, ns=ns)

    def wait(self) -> None:
        """Send what was collected and wait for all of it; raises no operation's error."""
        self.flush()
        for result in self._results:
            if not result.done():
                self.complete(result)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        results = self._results
        if error is None or isinstance(error, Exception):
            self.wait()
        else:
            # Whoever pressed Ctrl-C does not want to wait for anything more.
            self.drop()
        self._results = []
        if error is not None or not self.raise_errors:
            return
        for result in results:
            if not result.seen and result.exception() is not None:
                result.result()


class ImmediatePipeline(Pipeline):
    """A pipeline of a file system whose operations run in this process, each when it is called."""

    def __init__(self, fs: FileSystem) -> None:
        super().__init__()
        self._fs = fs

    def submit(self, target: Any, operation: str, *args: Any, **kwargs: Any) -> Result:
        function: Callable[..., Any] = getattr(self._fs if target is None else target, operation)
        result = Result(self)
        try:
            result.set_result(function(*args, **kwargs))
        except Exception as error:
            # Whatever it is, it belongs to the result, which raises it for whoever asks.
            result.set_exception(error)
        self._results.append(result)
        return result

    def flush(self) -> None:
        """Nothing is ever held back."""

    def drop(self) -> None:
        """Every operation has its result."""

    def complete(self, result: Result) -> None:
        """Nothing is ever awaited."""

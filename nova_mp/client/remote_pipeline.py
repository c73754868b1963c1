"""A pipeline over messages: requests travel in batches, and small reads many in one request.

Reads of open files are what pipelines are used for most. Those that follow each other become one
fs-pread-many, so that neither side makes a message of each; one alone is an fs-pread. They are held
back like all requests of a batch, and sent before whatever is called after them, so the order of
the calls is the order in which they are carried out.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from nova_mp.client import requests
from nova_mp.client.channel import Exchange, result_of
from nova_mp.client.pipeline import Pipeline, Result
from nova_mp.client.remote_file import RemoteFile
from nova_mp.errors import NovaError
from nova_mp.protocol import codec
from nova_mp.protocol import fileops as ops

if TYPE_CHECKING:
    from nova_mp.client.remote import RemoteOperations

READS_TOGETHER = 32
"""Reads of one request: many enough that a message costs each little, and few enough that a worker
has something to do while the next are collected."""

READ_BYTES_MAX = ops.READS_BYTES_MAX // READS_TOGETHER
"""Larger reads travel alone: joining them would cost more than their messages."""

_ERRORS = (NovaError, OSError, ValueError, TypeError, RuntimeError)


class RemoteResult(Result):
    """The result of something in a pipeline: made of the reply when it is asked for."""

    __slots__ = ("source",)

    def __init__(self, pipeline: RemotePipeline, source: Source) -> None:
        super().__init__(pipeline)
        self.source = source

    def done(self) -> bool:
        """See Result.done."""
        if not self._done:
            exchange = self.source.exchange
            if exchange is not None and exchange.done:
                self.source.settle()
        return self._done


class Source(Protocol):
    """What results come from: a request, once it is sent."""

    exchange: Exchange | None

    def settle(self) -> None:
        """Give the results of the finished exchange to those who wait for them; once."""


class Single:
    """A request with one result."""

    __slots__ = ("_request", "_settled", "exchange", "result")

    def __init__(
        self, pipeline: RemotePipeline, exchange: Exchange, request: requests.Request
    ) -> None:
        self.exchange: Exchange | None = exchange
        self._request = request
        self._settled = False
        self.result = RemoteResult(pipeline, self)

    def settle(self) -> None:
        """See Source."""
        if self._settled or self.exchange is None:
            return
        self._settled = True
        try:
            reply, payload = result_of(self.exchange)
            self.result.set_result(self._request.decode(reply, payload))
        except OSError as error:
            self.result.set_exception(requests.renamed(error, self._request.names))
        except _ERRORS as error:
            self.result.set_exception(error)
        # Results may live on for long; what they were made of need not.
        self.exchange.answer = ()


class Reads:
    """Reads that travel together."""

    __slots__ = (
        "_settled",
        "counts",
        "exchange",
        "handles",
        "into",
        "offsets",
        "results",
        "size",
    )

    def __init__(self) -> None:
        self._settled = False
        self.exchange: Exchange | None = None
        self.handles: list[int] = []
        self.counts: list[int] = []
        self.offsets: list[int] = []
        self.results: list[RemoteResult] = []
        # The callers' buffers, by the index of their reads.
        self.into: dict[int, memoryview] = {}
        self.size = 0

    def message(self) -> Any:
        """The request; one read needs no list."""
        if len(self.handles) == 1:
            return ops.Pread(self.handles[0], self.counts[0], self.offsets[0])
        return ops.PreadMany(tuple(self.handles), tuple(self.counts), tuple(self.offsets))

    def settle(self) -> None:
        """See Source."""
        if self._settled or self.exchange is None:
            return
        self._settled = True
        try:
            reply, payload = result_of(self.exchange)
            counts = reply.counts if type(reply) is ops.DataMany else (reply.count,)
        except _ERRORS as error:
            for result in self.results:
                result.set_exception(error)
            return
        data, start = payload[0] if payload else b"", 0
        for index, (result, count) in enumerate(zip(self.results, counts, strict=True)):
            if count < 0:
                result.set_exception(OSError(-count, os.strerror(-count)))
                continue
            end = start + count
            buffer = self.into.get(index)
            if buffer is None:
                result.set_result(bytes(data[start:end]))
            else:
                buffer[:count] = data[start:end]
                result.set_result(count)
            start = end
        self.exchange.answer = ()


class RemotePipeline(Pipeline):
    """Requests sent in batches on one channel, replies read when they are asked for."""

    def __init__(self, fs: RemoteOperations) -> None:
        super().__init__()
        self._connection = fs._connection
        self._fs = fs
        self._channel = fs._connection.borrow()
        # Reads that were not given to the channel yet.
        self._reads: Reads | None = None
        # What has results to come, in the order of the requests.
        self._awaited: deque[Source] = deque()

    def submit(self, target: Any, operation: str, *args: Any, **kwargs: Any) -> Result:
        try:
            maker = self._fs if target is None else target
            request: requests.Request = maker.request(operation, *args, **kwargs)
            # What no message can hold is to fail here, and not the whole batch.
            codec.check(request.message)
        except (OSError, ValueError, TypeError, OverflowError) as error:
            failed = Result(self)
            failed.set_exception(error)
            self._results.append(failed)
            return failed
        if self._reads is not None:
            self._post_reads(self._reads)
        size = sum(map(len, request.payload)) + request.expect_bytes
        self._make_room(size)
        exchange = self._channel.post(request.message, request.payload, request.expect_bytes)
        single = Single(self, exchange, request)
        self._awaited.append(single)
        self._results.append(single.result)
        return single.result

    def pread(self, file: Any, n: int, offset: int) -> Result:
        """See Pipeline.pread."""
        if type(file) is RemoteFile and file.can_read(n, offset, READ_BYTES_MAX):
            return self._add_read(file.handle, n, offset, None)
        # A large read, or one that is wrong in some way.
        return self.submit(file, "pread", n, offset)

    def preadinto(self, file: Any, buffer: Any, offset: int) -> Result:
        """See Pipeline.preadinto."""
        view = memoryview(buffer)
        size = -1 if view.readonly or not view.c_contiguous else view.nbytes
        if type(file) is RemoteFile and file.can_read(size, offset, READ_BYTES_MAX):
            return self._add_read(file.handle, size, offset, view.cast("B"))
        return self.submit(file, "preadinto", buffer, offset)

    def _add_read(self, handle: int, n: int, offset: int, into: memoryview | None) -> Result:
        reads = self._reads
        if reads is None:
            reads = self._reads = Reads()
        result = RemoteResult(self, reads)
        if into is not None:
            reads.into[len(reads.handles)] = into
        reads.handles.append(handle)
        reads.counts.append(n)
        reads.offsets.append(offset)
        reads.size += n
        reads.results.append(result)
        self._results.append(result)
        if len(reads.handles) == READS_TOGETHER:
            self._post_reads(reads)
            self._channel.flush()
        return result

    def _post_reads(self, reads: Reads) -> None:
        self._reads = None
        self._make_room(reads.size)
        reads.exchange = self._channel.post(reads.message(), (), reads.size)
        self._awaited.append(reads)

    def _make_room(self, size: int) -> None:
        if not self._channel.room(size):
            self._channel.wait_for_room(size, self._connection.deadline())
            self._collect()

    def flush(self) -> None:
        """See Pipeline.flush."""
        if self._reads is not None:
            self._post_reads(self._reads)
        self._channel.flush()

    def drop(self) -> None:
        """See Pipeline.drop."""
        reads, self._reads = self._reads, None
        if reads is not None:
            for result in reads.results:
                result.set_exception(requests.interrupted())
        self._channel.start_over()
        self._collect()

    def complete(self, result: Result) -> None:
        """See Pipeline.complete."""
        assert isinstance(result, RemoteResult)
        source = result.source
        if source.exchange is None:
            self.flush()
        assert source.exchange is not None
        if not source.exchange.done:
            # An error is the exchange's too, and from there the result's.
            with suppress(NovaError, OSError):
                self._channel.wait(source.exchange, self._connection.deadline())
        source.settle()

    def _collect(self) -> None:
        """Take in what has arrived, so that its memory is not held until the end."""
        awaited = self._awaited
        while awaited:
            exchange = awaited[0].exchange
            if exchange is None or not exchange.done:
                return
            awaited.popleft().settle()

    def __exit__(self, *exception: Any) -> None:
        try:
            super().__exit__(*exception)
        finally:
            self._connection.give_back(self._channel)

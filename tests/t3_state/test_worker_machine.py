"""A worker's decisions: sessions, requests that come twice, the end."""

from __future__ import annotations

import random
from typing import Any

import pytest

from nova_mp.cluster import vocabulary as v
from nova_mp.cluster import worker as w
from nova_mp.errors import ProtocolError
from nova_mp.protocol import fileops
from nova_mp.protocol import messages as m
from nova_mp.protocol.codec import request_id

GREETING = m.HelloReply("a", "engine", "0", 1, 0, "dram", "c", "e", ("w",), "here")
PEER = b"peer"


def ident(number: int) -> bytes:
    return request_id(b"c" * 16, number)


class Driver:
    """A worker machine with its process played by the test; validates after every event."""

    def __init__(self) -> None:
        self.worker = w.Worker(GREETING)

    def step(self, event: Any) -> list[Any]:
        out = self.worker.step(event)
        self.worker.validate_all()
        return out

    def ask(self, message: Any, number: int = 1, now: float = 0.0, peer: bytes = PEER) -> Any:
        return self.step(v.Request(peer, ident(number), message, now))

    def hello(self, pid: int = 0, peer: bytes = PEER, now: float = 0.0) -> list[Any]:
        return self.ask(m.Hello("0", "here" if pid else "", pid), 1, now, peer)


@pytest.fixture
def driver() -> Driver:
    return Driver()


def test_hello_opens_a_session(driver: Driver) -> None:
    assert driver.hello() == [v.Send(PEER, ident(1), GREETING)]
    assert driver.ask(m.Ping()) == [v.Send(PEER, ident(1), m.Pong("engine"))]


@pytest.mark.parametrize("message", [m.Ping(), fileops.Unlink(b"/x"), m.Bye()])
def test_an_unknown_session_is_told_so(driver: Driver, message: Any) -> None:
    (send,) = driver.ask(message)
    assert send.message.kind == "SessionUnknown"


def test_a_change_sent_twice_is_done_once(driver: Driver) -> None:
    driver.hello()
    (run,) = driver.ask(fileops.Unlink(b"/x"), 5)
    assert isinstance(run, v.RunFileOp)
    assert driver.ask(fileops.Unlink(b"/x"), 5) == [], "it runs already"
    answer = v.Answered(PEER, ident(5), m.Done(), (), run.keep)
    assert driver.step(answer) == [v.Send(PEER, ident(5), m.Done())]
    assert driver.ask(fileops.Unlink(b"/x"), 5) == [v.Send(PEER, ident(5), m.Done())]


def test_a_question_sent_twice_is_asked_twice(driver: Driver) -> None:
    driver.hello()
    (run,) = driver.ask(fileops.Stat(b"/x"), 5)
    driver.step(v.Answered(PEER, ident(5), m.Done(), (), run.keep))
    (again,) = driver.ask(fileops.Stat(b"/x"), 5)
    assert isinstance(again, v.RunFileOp)


def test_old_replies_are_forgotten(driver: Driver) -> None:
    driver.hello()
    for number in range(w.REPLIES_REMEMBERED + 1):
        (run,) = driver.ask(fileops.Unlink(b"/x"), number)
        driver.step(v.Answered(PEER, ident(number), m.Done(), (), run.keep))
    assert driver.ask(fileops.Unlink(b"/x"), 0)[0].message.kind == "Timeout"
    assert driver.ask(fileops.Unlink(b"/x"), w.REPLIES_REMEMBERED)[0].message == m.Done()


def test_a_process_is_watched_while_it_has_sessions(driver: Driver) -> None:
    assert v.Watch(42) in driver.hello(42, b"one")
    assert v.Watch(42) not in driver.hello(42, b"two")
    assert driver.ask(m.Bye(), 2, peer=b"one") == [v.DropSession(b"one")]
    assert driver.ask(m.Bye(), 2, peer=b"two") == [v.DropSession(b"two"), v.Unwatch(42)]


def test_sessions_end_with_their_process(driver: Driver) -> None:
    driver.hello(42, b"one")
    driver.hello(42, b"two")
    driver.hello(43, b"other")
    out = driver.step(v.HolderDied(42, 0.0))
    assert [i.peer for i in out if isinstance(i, v.DropSession)] == [b"one", b"two"]
    assert driver.ask(m.Ping(), peer=b"other")[0].message == m.Pong("engine")


def test_a_silent_session_of_another_machine_ends(driver: Driver) -> None:
    driver.hello(peer=b"silent")
    driver.hello(peer=b"talks")
    driver.hello(42, b"watched")
    late = w.SESSION_IDLE_S + 1
    driver.ask(m.Ping(), now=late, peer=b"talks")
    assert driver.step(v.Tick(late)) == [v.DropSession(b"silent")]


def test_there_are_only_so_many_sessions(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(w, "SESSIONS_MAX", 2)
    for peer in (b"one", b"two"):
        driver.hello(peer=peer)
    assert driver.hello(42, b"three")[0].message.kind == "SlotsExhausted"
    assert driver.hello(peer=b"two")[0].message == GREETING, "it has one already"
    driver.ask(m.Bye(), 2, peer=b"one")
    assert driver.hello(peer=b"three")[0].message == GREETING


def test_malformed_requests_harm_nobody(driver: Driver) -> None:
    driver.hello()
    (send,) = driver.step(v.Malformed(b"evil", b"", ProtocolError("rubbish")))
    assert send.message.kind == "ProtocolError"
    assert driver.ask(m.SnapshotCreate())[0].message.kind == "ProtocolError"
    assert driver.ask(m.Ping())[0].message == m.Pong("engine")
    assert driver.worker.malformed == 1


def test_quit_answers_what_has_arrived_and_closes_sessions(driver: Driver) -> None:
    driver.hello(42)
    driver.step(v.QuitAsked(0.0))
    assert isinstance(driver.ask(fileops.Stat(b"/x"), 2)[0], v.RunFileOp)
    assert driver.step(v.Drained()) == [v.DropSession(PEER), v.Unwatch(42), v.Exit()]


def ask_among(driver: Driver, message: Any, number: int, oldest: int) -> list[Any]:
    """A request of a client that waits for all numbers from `oldest` on."""
    return driver.step(v.Request(PEER, ident(number), message, 0.0, (), oldest))


def finish(driver: Driver, run: v.RunFileOp, payload: tuple[bytes, ...] = ()) -> None:
    driver.step(v.Answered(PEER, run.request_id, m.Done(), payload, run.keep))


def test_what_comes_behind_a_gap_waits_for_it(driver: Driver) -> None:
    driver.hello()
    assert ask_among(driver, fileops.Unlink(b"/b"), 6, 5) == [], "5 was lost"
    for number in (5, 6):
        (run,) = ask_among(driver, fileops.Unlink(b"/x"), number, 5)
        assert run.request_id == ident(number)
        finish(driver, run)


def test_numbers_that_were_given_up_are_no_gap(driver: Driver) -> None:
    driver.hello()
    (run,) = driver.ask(fileops.Unlink(b"/a"), 5)
    finish(driver, run)
    assert isinstance(ask_among(driver, fileops.Unlink(b"/b"), 9, 9)[0], v.RunFileOp)
    assert isinstance(driver.ask(fileops.Unlink(b"/c"), 20)[0], v.RunFileOp)


def test_an_answer_is_not_given_later_than_it_was_asked_for(driver: Driver) -> None:
    driver.hello()
    (read,) = ask_among(driver, fileops.Pread(1, 4, 0), 5, 5)
    finish(driver, read, (b"old!",))
    (write,) = ask_among(driver, fileops.Pwrite(1, 0), 6, 5)
    finish(driver, write)
    (send,) = ask_among(driver, fileops.Pread(1, 4, 0), 5, 5)
    assert send.payload == (b"old!",)

    (large,) = ask_among(driver, fileops.Pread(1, 2 << 20, 0), 7, 7)
    finish(driver, large, (bytes(w.REMEMBERED_BYTES_MAX + 1),))
    assert isinstance(ask_among(driver, fileops.Pread(1, 2 << 20, 0), 7, 7)[0], v.RunFileOp)
    finish(driver, large, (bytes(w.REMEMBERED_BYTES_MAX + 1),))
    (write,) = ask_among(driver, fileops.Pwrite(1, 0), 8, 7)
    finish(driver, write)
    assert ask_among(driver, fileops.Pread(1, 2 << 20, 0), 7, 7)[0].message.kind == "Timeout"


def test_payload_is_not_remembered_for_the_silent(driver: Driver) -> None:
    driver.hello(42)
    for number, message in ((5, fileops.Pread(1, 4, 0)), (6, fileops.Unlink(b"/x"))):
        (run,) = ask_among(driver, message, number, 5)
        finish(driver, run, (b"data",) if number == 5 else ())
    driver.step(v.Tick(w.KEPT_IDLE_S + 1))
    assert ask_among(driver, fileops.Pread(1, 4, 0), 5, 5)[0].message.kind == "Timeout"
    assert ask_among(driver, fileops.Unlink(b"/x"), 6, 5)[0].message == m.Done()


def test_a_malformed_request_is_no_gap(driver: Driver) -> None:
    driver.hello()
    (run,) = ask_among(driver, fileops.Unlink(b"/x"), 5, 5)
    finish(driver, run)
    driver.step(v.Malformed(PEER, ident(6), ProtocolError("rubbish")))
    assert isinstance(ask_among(driver, fileops.Unlink(b"/x"), 7, 5)[0], v.RunFileOp)


def test_the_short_way_decides_as_the_long_one() -> None:
    """Random requests, given to one worker by `step` and to another by `admit`."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"replay with seed {seed}")
    chance = random.Random(seed)
    long, short = Driver(), Driver()
    long.hello()
    short.hello()
    number = 0
    for _ in range(2000):
        number = max(0, number + chance.choice((1, 1, 1, 1, 0, -1, 2)))
        oldest = chance.choice((None, max(0, number - chance.randrange(4))))
        message = chance.choice((fileops.Unlink(b"/x"), fileops.Pread(1, 1, 0), m.Ping()))
        payload = (b"x",) if isinstance(message, fileops.Pread) else ()
        request = v.Request(PEER, ident(number), message, 0.0, (), oldest)
        expected = long.step(request)
        keep = short.worker.admit(PEER, ident(number), type(message), oldest, 0.0)
        if keep is None:
            assert short.step(request) == expected
        else:
            assert expected == [v.RunFileOp(PEER, ident(number), message, (), keep)]
        if expected and isinstance(expected[0], v.RunFileOp):
            answer = (PEER, ident(number), m.Done(), payload, expected[0].keep)
            long.step(v.Answered(*answer))
            if keep is None:
                short.step(v.Answered(*answer))
            else:
                short.worker.answered(*answer)
        short.worker.validate_all()
    assert short.worker._stats() == long.worker._stats()

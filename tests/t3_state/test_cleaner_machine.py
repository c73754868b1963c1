"""The cleaner's decisions: reclaim until nothing is left, and say so truthfully."""

from __future__ import annotations

from typing import Any

from nova_mp.cluster import vocabulary as v
from nova_mp.cluster.cleaner import BUDGET, PAUSE_S, Cleaner, State
from nova_mp.protocol.messages import ReclaimReport

RECLAIM = v.Reclaim(BUDGET)


def idle(deletions: int = 0) -> Cleaner:
    cleaner = Cleaner()
    assert cleaner.start() == [RECLAIM]
    cleaner.step(v.EpochSeen("one", deletions, False, 0.0))
    cleaner.step(v.Reclaimed(0, 0.0))
    cleaner.step(v.Reclaimed(0, 0.0))
    assert cleaner.state is State.IDLE
    return cleaner


def reports(instructions: list[Any]) -> list[ReclaimReport]:
    return [i.message for i in instructions if isinstance(i, v.Report)]


def test_it_reclaims_at_start_without_being_asked() -> None:
    cleaner = Cleaner()
    assert cleaner.start() == [RECLAIM]
    assert cleaner.step(v.Reclaimed(0, 0.0)) == [], "it knows no coordinator to report to"


def test_a_deletion_is_reclaimed_in_portions_and_reported() -> None:
    cleaner = idle()
    assert RECLAIM in cleaner.step(v.EpochSeen("one", 1, False, 0.0))
    assert cleaner.step(v.Reclaimed(900, 0.0)) == [RECLAIM]
    assert cleaner.step(v.Reclaimed(300, 0.0)) == [RECLAIM]
    assert reports(cleaner.step(v.Reclaimed(0, 0.0))) == [ReclaimReport("one", 1, 0)]


def test_a_state_that_is_known_starts_nothing() -> None:
    assert idle(3).step(v.EpochSeen("one", 3, False, 0.0)) == []


def test_a_thaw_starts_what_a_freeze_held_up() -> None:
    cleaner = idle()
    cleaner.step(v.EpochSeen("one", 1, True, 0.0))
    cleaner.step(v.Reclaimed(10, 0.0))
    cleaner.step(v.Reclaimed(10, 0.0))
    assert cleaner.state is State.PAUSED
    assert RECLAIM in cleaner.step(v.EpochSeen("one", 1, False, 0.0))


def test_a_new_coordinator_gets_a_report_of_its_own() -> None:
    cleaner = idle(3)
    assert RECLAIM in cleaner.step(v.EpochSeen("two", 0, False, 0.0))
    assert reports(cleaner.step(v.Reclaimed(0, 0.0))) == [ReclaimReport("two", 0, 0)]


def test_a_deletion_during_a_pass_gets_a_pass_of_its_own() -> None:
    cleaner = idle()
    cleaner.step(v.EpochSeen("one", 1, False, 0.0))
    assert cleaner.step(v.EpochSeen("one", 2, False, 0.0)) == [], "one call at a time"
    out = cleaner.step(v.Reclaimed(0, 0.0))
    assert reports(out) == [ReclaimReport("one", 1, 0)]
    assert RECLAIM in out
    assert reports(cleaner.step(v.Reclaimed(0, 0.0))) == [ReclaimReport("one", 2, 0)]


def test_without_progress_it_pauses_longer_and_longer() -> None:
    cleaner = idle()
    cleaner.step(v.EpochSeen("one", 1, False, 0.0))
    cleaner.step(v.Reclaimed(10, 0.0))
    out = cleaner.step(v.Reclaimed(10, 0.0))
    assert out == [v.Report(ReclaimReport("one", 1, 10)), v.SetTimer(PAUSE_S)]
    assert cleaner.step(v.Tick(PAUSE_S)) == [RECLAIM]
    cleaner.step(v.Reclaimed(10, PAUSE_S))
    assert v.SetTimer(3 * PAUSE_S) in cleaner.step(v.Reclaimed(10, PAUSE_S))
    # A deletion ends the pause: it may be what was waited for.
    assert RECLAIM in cleaner.step(v.EpochSeen("one", 2, False, PAUSE_S))


def test_quit_waits_for_the_call_under_way() -> None:
    cleaner = idle()
    cleaner.step(v.EpochSeen("one", 1, False, 0.0))
    assert cleaner.step(v.QuitAsked(0.0)) == []
    assert cleaner.step(v.Reclaimed(10, 0.0)) == [v.Exit()]
    assert idle().step(v.QuitAsked(0.0)) == [v.Exit()]

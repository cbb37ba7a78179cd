"""A line at least every half minute, by a clock that the tests turn."""

from __future__ import annotations

from itertools import pairwise

import pytest

from ccf_plugin.engine import heartbeat
from ccf_plugin.engine.heartbeat import Heartbeat, in_words


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_silence_never_lasts_longer_than_half_a_minute() -> None:
    clock, said = Clock(), list[tuple[float, str]]()
    beat = Heartbeat(lambda line: said.append((clock.now - 1000, line)), clock)
    beat.begin("measuring", 40)
    for second in range(1, 201):  # a batch of 5 seconds each
        clock.now = 1000.0 + second
        if second % 5 == 0:
            beat.step(second // 5)
        beat.look()
    moments = [0.0, *(moment for moment, _ in said), 200.0]
    assert max(after - before for before, after in pairwise(moments)) <= 30
    assert said[0] == (30, "measuring, batch 6 of 40 done, 30 s so far, about 3 min to go")  # 34 batches of 5 s: 170 s
    assert len(said) == 6


def test_a_single_step_of_minutes_is_told_too() -> None:
    clock, said = Clock(), list[str]()
    beat = Heartbeat(said.append, clock)
    beat.begin("crafting", 2)
    for _ in range(6):
        clock.now += 30
        beat.look()
    assert len(said) == 6
    assert said[-1] == "crafting, batch 0 of 2 done, 3 min so far"


def test_what_is_short_says_nothing() -> None:
    clock, said = Clock(), list[str]()
    beat = Heartbeat(said.append, clock)
    beat.begin("measuring", 3)
    for done in range(1, 4):
        clock.now += 9.9
        beat.step(done)
    assert said == []


def test_another_line_puts_it_off() -> None:
    clock, said = Clock(), list[str]()
    beat = Heartbeat(said.append, clock)
    clock.now += 29
    beat.line_printed()
    clock.now += 29
    beat.look()
    assert said == []
    clock.now += 1
    beat.look()
    assert said == ["starting, 59 s so far"]


def test_a_thread_looks_while_the_block_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(heartbeat, "INTERVAL", 0.0)
    monkeypatch.setattr(heartbeat, "_LOOKS_EVERY", 0.0)
    spoke = threading.Event()
    before = threading.active_count()
    with Heartbeat(lambda _: spoke.set()):
        assert spoke.wait(60)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3569, "59 min"), (3600, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert in_words(seconds) == text

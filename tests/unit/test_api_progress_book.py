"""What is claimed of starts and moves under way: the latest of this plan, and nothing that is old."""

from __future__ import annotations

import json

import pytest

from api.progress_book import FORGET_AFTER_S, ProgressBook


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def start(epoch: int, phase: str, **more: object) -> str:
    word = {"kind": "start", "instance_id": "one", "epoch": epoch, "phase": phase, "phase_s": 2.0}
    return json.dumps({**word, **more})


def test_the_latest_plan_is_believed_and_counted_by_the_clock_here() -> None:
    book = ProgressBook(Clock())
    book.hear(start(5, "load"))
    assert book.starts()["one"].since_unix_s == 998.0
    book.hear(start(4, "attach"))
    found = book.start_of("one", 5)
    assert found is not None and found.phase == "load"
    assert book.start_of("one", 4) is None
    book.hear(start(6, "queue", added_by_a_later_release=1))
    assert book.start_of("one", 5) is None and book.start_of("one", 6) is not None


def test_who_falls_silent_is_forgotten() -> None:
    clock = Clock()
    book = ProgressBook(clock)
    book.hear(start(1, "load"))
    move = {"migration_id": "m", "source_instance_id": "one", "source_epoch": 1, "move_s": 0.5}
    book.hear(json.dumps({"kind": "move", **move}))
    assert list(book.moves()) == ["m"]
    clock.now += FORGET_AFTER_S + 1
    assert (book.starts(), book.moves(), book.start_of("one", 1)) == ({}, {}, None)
    # A plan's number counts only while somebody speaks for it.
    book.hear(start(1, "load"))
    assert list(book.starts()) == ["one"]


@pytest.mark.parametrize("payload", ["no json", "[]", "null", "{}", '{"kind": "x"}', '{"kind": "move"}'])
def test_what_is_not_understood_is_said_to_be(payload: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        ProgressBook().hear(payload)

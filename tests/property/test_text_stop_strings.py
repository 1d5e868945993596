"""Laws of the stop matcher, against a cut made by brute force letter by letter."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from api.text.stop_strings import StopMatcher

letters = st.text(alphabet="ab é", max_size=24)
stops = st.lists(st.text(alphabet="ab é", min_size=1, max_size=5), min_size=1, max_size=3)


def cut_by_brute_force(text: str, stops: list[str]) -> tuple[str, bool]:
    """Read letter by letter; at the first letter that completes a stop string, cut before the longest."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@given(pieces=st.lists(letters, max_size=8), stops=stops)
def test_the_cut_is_that_of_brute_force_however_the_text_is_split(
    pieces: list[str], stops: list[str]
) -> None:
    matcher = StopMatcher(stops)
    out = "".join(matcher.feed(piece) for piece in pieces)
    is_stopped = matcher.is_stopped
    out += matcher.finish()
    assert (out, is_stopped) == cut_by_brute_force("".join(pieces), stops)


@given(pieces=st.lists(letters, max_size=8), stops=stops)
def test_only_what_could_become_a_stop_string_is_held(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    out, seen = "", ""
    for piece in pieces:
        out += matcher.feed(piece)
        seen += piece
        if matcher.is_stopped:
            return
        held = seen[len(out) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)

"""What the Temporal UI shows of a migration, in Markdown: every round, and what became of the requests."""

from __future__ import annotations

from firstlight.contracts.migrations import MoveReceipt


def moved_table(move: MoveReceipt) -> str:
    """One row per round, the longest pause last."""
    rows = [_row("round", "requests", "tokens", "MB", "seconds"), "|--:|--:|--:|--:|--:|"]
    rows += [
        _row(row.round, row.requests, row.tokens, f"{row.sent_bytes / 1e6:.2f}", f"{row.seconds:.3f}")
        for row in move.rounds
    ]
    fates = f"handed over {move.handed_over}, moved before they began {move.moved_waiting}, "
    fates += f"ended by themselves {move.ended}, stayed {move.failed}"
    pause = f"Longest stand-still **{move.held_s * 1000:.0f} ms**, moved in {move.elapsed_s:.2f} s"
    return "\n".join([f"{pause}: {fates}.", "", *rows])


def _row(*cells: object) -> str:
    # The UI draws cells without any space between them.
    return "|" + "".join(f"\u00a0\u00a0{cell} |" for cell in cells)

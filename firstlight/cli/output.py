"""How values look in tables."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

# Nobody's lines are cut when the output goes to a file or another program.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
_UNITS = ("B", "kB", "MB", "GB", "TB")


# Any: whatever JSON the API returned.
def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def table(*columns: str) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        # The last column gives way first: it is the one that may be long.
        is_last = column == columns[-1]
        made.add_column(column, no_wrap=not is_last, overflow="fold" if is_last else "ellipsis")
    return made


def size(size_bytes: float | None) -> str:
    """Decimal units, two or three digits."""
    if size_bytes is None:
        return "-"
    value, unit = float(size_bytes), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value >= 10 else f"{value:.1f} {_UNITS[unit]}"


def rate(bytes_per_s: float) -> str:
    return f"{size(bytes_per_s)}/s"


def seconds(value_s: float | None) -> str:
    if value_s is None:
        return "-"
    if value_s < 1:
        return f"{value_s * 1000:.0f} ms"
    return f"{value_s:.1f} s" if value_s < 90 else f"{value_s / 60:.1f} min"


def bar(share: float, width: int = 20) -> str:
    """A bar of `width` characters, `share` of it filled; a share above nothing shows something."""
    share = min(1.0, max(0.0, share))
    filled = max(1, round(share * width)) if share > 0 else 0
    return "█" * filled + "░" * (width - filled)

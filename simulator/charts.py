"""Plots as SVG, drawn from numbers alone, so that a report is one file without anything to load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import floor, log10

Points = Sequence[tuple[float, float]]

# Of one lightness, told apart with the usual colour blindnesses; ours is the first.
COLOURS = (
    "#0b6fb8", "#d1495b", "#edae49", "#00798c", "#6a4c93",
    "#8ac926", "#7a7a7a", "#ff7f50", "#3d405b", "#b5838d",
)  # fmt: skip
WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 28, 40


def lines(
    title: str, series: Mapping[str, Points], *, x: str, y: str, x_log: bool = False, as_steps: bool = False
) -> str:
    """One line per series. With `x_log`, what is not above 0 stands at the left edge."""
    xs = [point[0] for points in series.values() for point in points]
    ys = [point[1] for points in series.values() for point in points]
    if not xs:
        return ""
    left, right = _ends(xs, x_log=x_log)
    top = max([*ys, 1e-9])
    parts = [_frame(title, x=x, y=y)]
    parts += _x_axis(left, right, x_log=x_log)
    parts += _y_axis(top)
    for index, (name, points) in enumerate(series.items()):
        places = [(_x(px, left, right, x_log=x_log), _y(py, top)) for px, py in points]
        parts.append(_path(places, COLOURS[index % len(COLOURS)], as_steps=as_steps))
        parts.append(_legend(index, name))
    return _svg(parts)


def bars(title: str, series: Mapping[str, Mapping[str, float]], *, x: str) -> str:
    """One bar per series, of stacked parts that have one colour each wherever they occur."""
    if not series:
        return ""
    names = list(dict.fromkeys(part for parts in series.values() for part in parts))
    right = max([sum(parts.values()) for parts in series.values()] + [1e-9])
    drawn = [_frame(title, x=x, y="")]
    drawn += _x_axis(0.0, right, x_log=False)
    height = (HEIGHT - TOP - BOTTOM) / len(series)
    for row, (name, parts) in enumerate(series.items()):
        at, top = 0.0, TOP + row * height
        drawn.append(
            f'<text class="tick" x="{LEFT + 4}" y="{top + height / 2 + 4:.1f}">{escape(name)}</text>'
        )
        for part, value in parts.items():
            begin, end = _x(at, 0.0, right), _x(at + value, 0.0, right)
            colour = COLOURS[names.index(part) % len(COLOURS)]
            drawn.append(
                f'<rect x="{begin:.1f}" y="{top + 2:.1f}" width="{end - begin:.1f}" '
                f'height="{height - 4:.1f}" fill="{colour}" fill-opacity="0.55">'
                f"<title>{escape(name)}, {escape(part)}: {value:.1f}</title></rect>"
            )
            at += value
    drawn += [_legend(index, name) for index, name in enumerate(names)]
    return _svg(drawn)


def _ends(xs: Sequence[float], *, x_log: bool) -> tuple[float, float]:
    if not x_log:
        return min(0.0, *xs), max([*xs, 1e-9])
    above = [x for x in xs if x > 0] or [1.0]
    return 10.0 ** floor(log10(max(min(above), 0.01))), max(above) * 1.05


def _x(value: float, left: float, right: float, *, x_log: bool = False) -> float:
    if x_log:
        value, left, right = log10(max(value, left)), log10(left), log10(right)
    share = (value - left) / (right - left) if right > left else 0.0
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)


def _x_axis(left: float, right: float, *, x_log: bool) -> list[str]:
    ticks = _powers(left, right) if x_log else [left + (right - left) * step / 4 for step in range(5)]
    return [_tick(_x(tick, left, right, x_log=x_log), HEIGHT - BOTTOM + 14, tick, "middle") for tick in ticks]


def _y_axis(top: float) -> list[str]:
    parts = []
    for step in range(5):
        value = top * step / 4
        at = _y(value, top)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_tick(LEFT - 6, at + 4, value, "end"))
    return parts


def _powers(left: float, right: float) -> list[float]:
    power, found = left, []
    while power <= right:
        found.append(power)
        power *= 10
    return found


def _tick(x: float, y: float, value: float, anchor: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{value:.3g}</text>'


def _path(places: Points, colour: str, *, as_steps: bool) -> str:
    if not places:
        return ""
    drawn = [f"M{places[0][0]:.1f},{places[0][1]:.1f}"]
    for px, py in places[1:]:
        drawn.append(f"H{px:.1f}V{py:.1f}" if as_steps else f"L{px:.1f},{py:.1f}")
    return f'<path d="{"".join(drawn)}" stroke="{colour}" fill="none" stroke-width="1.6"/>'


def _legend(index: int, name: str) -> str:
    x, y = LEFT + 8 + (index % 5) * 100, TOP - 8 - (index // 5) * 11
    return (
        f'<rect x="{x}" y="{y - 7}" width="8" height="8" fill="{COLOURS[index % len(COLOURS)]}"/>'
        f'<text class="legend" x="{x + 11}" y="{y}">{escape(name)}</text>'
    )


def _frame(title: str, *, x: str, y: str) -> str:
    middle = (LEFT + WIDTH - RIGHT) / 2
    return (
        f"<title>{escape(title)}</title>"
        f'<text class="axis" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x)}</text>'
        f'<text class="axis" transform="translate(12,{HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y)}</text>"
    )


def _svg(parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="10">{"".join(parts)}</svg>'
    )

"""Charts as SVG (1.1), without a library: lines over two logarithmic axes, and bars over one. They follow the reader's light or dark."""

from __future__ import annotations

from html import escape
from math import ceil, floor, log10
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM, _NAMES = 960, 70, 320, 60, 50, 380
_STYLE = """
text{font:13px system-ui,sans-serif;fill:#333}.title{font-size:16px;font-weight:600}
.page{fill:#fff}.grid{stroke:#e3e3e3}.peer{opacity:.75}
.convmem{--c:#0b7a55}.limit{--c:#6b7680}.usual{--c:#a3adb5}.peer{--c:#c4501b}
@media (prefers-color-scheme:dark){text{fill:#ddd}.page{fill:#1e2129}.grid{stroke:#3a3f4a}
.convmem{--c:#3ecf9b}.limit{--c:#98a4b0}.usual{--c:#6f7983}.peer{--c:#ff8f5c}}
rect.convmem,rect.limit,rect.usual,rect.peer,circle{fill:var(--c)}polyline{stroke:var(--c);fill:none;stroke-width:1.5}
polyline.convmem{stroke-width:3}
"""
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "1 2", "7 2 2 2 2 2")


def lines(title: str, across: str, up: str, series: Mapping[str, tuple[Sequence[tuple[float, float]], str]], *, height: int = 480) -> str:
    """Return a chart with a line for each series of points and its kind, both axes logarithmic; an x of 0 stands at the left edge.

    The names stand beside the ends of their lines, moved apart where they would meet.
    """
    points = {name: ([(max(x, 1.0), y) for x, y in line if y > 0], kind) for name, (line, kind) in series.items()}
    points = {name: (line, kind) for name, (line, kind) in points.items() if line}
    every = [point for line, _ in points.values() for point in line]
    low, high = floor(log10(min(y for _, y in every))), ceil(log10(max(y for _, y in every)))
    right = ceil(log10(max(x for x, _ in every)))
    height = max(height, _TOP + _BOTTOM + 18 * len(points))

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (_WIDTH - _LEFT - _RIGHT) * log10(x) / max(right, 1),
            height - _BOTTOM - (height - _TOP - _BOTTOM) * (log10(y) - low) / max(high - low, 1),
        )

    body = []
    for power in range(low, high + 1):
        _, y = at(1, 10.0**power)
        body.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>')
        body.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:,g}</text>')
    for power in range(right + 1):
        x, _ = at(10.0**power, 10.0**low)
        body.append(f'<text x="{x:.1f}" y="{height - _BOTTOM + 18}" text-anchor="middle">{f"{10**power:,}" if power else "0"}</text>')
    ends = sorted((at(*line[-1])[1], name) for name, (line, _) in points.items())
    for (place, (name, y_label)), (line, kind) in zip(enumerate(_apart(ends, height)), (points[name] for _, name in ends), strict=True):
        dashes = _DASHES[place % len(_DASHES)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in line))
        x, y = at(*line[-1])
        body.append(f'<polyline class="{kind}" points="{path}" stroke-dasharray="{"" if kind == "convmem" else dashes}"/>')
        body += [f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in (at(*point) for point in line)]
        body.append(f'<line class="grid" x1="{x + 5:.1f}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT + 20}" y2="{y_label:.1f}"/>')
        body.append(f'<text x="{_WIDTH - _RIGHT + 24}" y="{y_label + 4:.1f}">{escape(name)}</text>')
    body.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{height - 10}" text-anchor="middle">{escape(across)}</text>')
    body.append(f'<text x="14" y="{_TOP - 14}">{escape(up)}</text>')
    return _svg(title, height, body)


def _apart(ends: Sequence[tuple[float, str]], height: int, gap: float = 17) -> list[tuple[str, float]]:
    """Return where each name stands: at its line's end or as near below or above as there is room."""
    placed: list[float] = []
    for y, _ in ends:
        placed.append(max(y, placed[-1] + gap) if placed else max(y, _TOP))
    bottom = float(height - _BOTTOM)
    for number in range(len(placed) - 1, -1, -1):
        placed[number] = min(placed[number], bottom)
        bottom = placed[number] - gap
    return [(name, y) for (_, name), y in zip(ends, placed, strict=True)]


def over_time(title: str, up: str, series: Mapping[str, Sequence[tuple[float, float]]], *, height: int = 240) -> str:
    """Return a chart with a line for each series of minutes and values, both axes from 0."""
    every = [point for line in series.values() for point in line]
    (right, x_step), (high, y_step) = (_round(max(values)) for values in zip(*every, strict=True))
    across, down = _WIDTH - _LEFT - _RIGHT, height - _TOP - _BOTTOM
    body = []
    for number in range(round(high / y_step) + 1):
        y = height - _BOTTOM - down * number * y_step / high
        body.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>')
        body.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number * y_step:,g}</text>')
    for number in range(round(right / x_step) + 1):
        x = _LEFT + across * number * x_step / right
        body.append(f'<text x="{x:.1f}" y="{height - _BOTTOM + 18}" text-anchor="middle">{number * x_step:,g}</text>')
    for place, (name, line) in enumerate(series.items()):
        path = " ".join(f"{_LEFT + across * x / right:.1f},{height - _BOTTOM - down * y / high:.1f}" for x, y in line)
        y = _TOP + 10 + 18 * place
        body.append(f'<polyline class="limit" points="{path}" stroke-dasharray="{_DASHES[place % len(_DASHES)]}"/>')
        sample = f"{_WIDTH - _RIGHT + 20},{y - 4} {_WIDTH - _RIGHT + 50},{y - 4}"
        body.append(f'<polyline class="limit" points="{sample}" stroke-dasharray="{_DASHES[place % len(_DASHES)]}"/>')
        body.append(f'<text x="{_WIDTH - _RIGHT + 58}" y="{y}">{escape(name)}</text>')
    body.append(f'<text x="{_LEFT + across / 2}" y="{height - 10}" text-anchor="middle">minutes</text>')
    body.append(f'<text x="14" y="{_TOP - 14}">{escape(up)}</text>')
    return _svg(title, height, body)


def _round(most: float) -> tuple[float, float]:
    """Return where an axis that holds so much ends, and the step of its marks: 1, 2 or 5 times a power of ten, at most five of them."""
    power = 10.0 ** floor(log10(most / 5 or 1.0))
    step = next(times * power for times in (1, 2, 5, 10) if times * power * 5 >= most)
    return step * ceil(most / step or 1), step


def bars(title: str, unit: str, values: Mapping[str, tuple[float, str]]) -> str:
    """Return a chart with a bar for each value and its kind, which chooses the colour; the longest first."""
    height = _TOP + 30 + 26 * len(values)
    most = max(value for value, _ in values.values())
    body = []
    for place, (name, (value, kind)) in enumerate(sorted(values.items(), key=lambda item: -item[1][0])):
        y, width = _TOP + 26 * place, (_WIDTH - _NAMES - 100) * value / most
        body.append(f'<text x="{_NAMES}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
        body.append(f'<rect class="{kind}" x="{_NAMES + 10}" y="{y}" width="{max(width, 1):.1f}" height="18"/>')
        body.append(f'<text x="{_NAMES + 18 + width:.1f}" y="{y + 14}">{value:,.0f}</text>')
    body.append(f'<text x="{_NAMES + 10}" y="{height - 10}">{escape(unit)}</text>')
    return _svg(title, height, body)


def _svg(title: str, height: int, body: Sequence[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">',
            f"<style>{_STYLE}</style>",
            f'<rect class="page" width="{_WIDTH}" height="{height}"/>',
            f'<text class="title" x="14" y="24">{escape(title)}</text>',
            *body,
            "</svg>\n",
        ]
    )

"""Charts as SVG (1.1), without a library: lines over two logarithmic axes, and bars over one."""

from __future__ import annotations

from html import escape
from math import ceil, floor, log10
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 960, 70, 300, 50, 50
_COLOURS = ("#0b6e4f", "#c1440e", "#3057a5", "#8e44ad", "#b8860b", "#2c7a9c", "#7f8c8d", "#a63d57", "#4d6600", "#5d4037")


def lines(title: str, across: str, up: str, series: Mapping[str, Sequence[tuple[float, float]]], *, height: int = 460) -> str:
    """Return a chart with a line for each series of points, both axes logarithmic; an x of 0 stands at the left edge."""
    points = {name: [(max(x, 1.0), y) for x, y in line if y > 0] for name, line in series.items()}
    every = [point for line in points.values() for point in line]
    low, high = floor(log10(min(y for _, y in every))), ceil(log10(max(y for _, y in every)))
    right = ceil(log10(max(x for x, _ in every)))

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (_WIDTH - _LEFT - _RIGHT) * log10(x) / max(right, 1),
            height - _BOTTOM - (height - _TOP - _BOTTOM) * (log10(y) - low) / max(high - low, 1),
        )

    body = []
    for power in range(low, high + 1):
        _, y = at(1, 10.0**power)
        body.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>')
        body.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for power in range(right + 1):
        x, _ = at(10.0**power, 10.0**low)
        body.append(f'<text x="{x:.1f}" y="{height - _BOTTOM + 18}" text-anchor="middle">{10**power:,}</text>')
    for place, (name, line) in enumerate(points.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in line))
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in (at(*point) for point in line)]
        y_legend = _TOP + 10 + 20 * place
        body.append(f'<rect x="{_WIDTH - _RIGHT + 20}" y="{y_legend - 9}" width="14" height="10" fill="{colour}"/>')
        body.append(f'<text x="{_WIDTH - _RIGHT + 40}" y="{y_legend}">{escape(name)}</text>')
    body.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{height - 10}" text-anchor="middle">{escape(across)}</text>')
    body.append(f'<text x="14" y="{_TOP - 14}">{escape(up)}</text>')
    return _svg(title, height, body)


def bars(title: str, unit: str, values: Mapping[str, tuple[float, str]]) -> str:
    """Return a chart with a bar for each value and its kind, which chooses the colour; the longest first."""
    colours = {"limit": "#7f8c8d", "usual": "#b0b8ba", "convmem": "#0b6e4f", "peer": "#c1440e"}
    height = _TOP + 30 + 26 * len(values)
    most = max(value for value, _ in values.values())
    body = []
    for place, (name, (value, kind)) in enumerate(sorted(values.items(), key=lambda item: -item[1][0])):
        y, width = _TOP + 26 * place, (_WIDTH - _RIGHT - 100) * value / most
        body.append(f'<text x="{_RIGHT}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
        body.append(f'<rect x="{_RIGHT + 10}" y="{y}" width="{max(width, 1):.1f}" height="18" fill="{colours[kind]}"/>')
        body.append(f'<text x="{_RIGHT + 18 + width:.1f}" y="{y + 14}">{value:,.0f}</text>')
    body.append(f'<text x="{_RIGHT + 10}" y="{height - 10}">{escape(unit)}</text>')
    return _svg(title, height, body)


def _svg(title: str, height: int, body: Sequence[str]) -> str:
    style = "text{font:13px system-ui,sans-serif;fill:#333}.title{font-size:16px;font-weight:600}.grid{stroke:#ddd}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">',
            f"<style>{style}</style>",
            f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
            f'<text class="title" x="14" y="22">{escape(title)}</text>',
            *body,
            "</svg>\n",
        ]
    )

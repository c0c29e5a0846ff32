"""Bars on a logarithmic scale as SVG, by hand: no plotting library, readable on light and dark pages."""

from __future__ import annotations

import math
from html import escape

Panel = dict[str, dict[str, float]]  # group: series: value

WIDTH, LEFT, RIGHT = 860, 56, 12
PANEL, TOP, BAR = 190, 64, 22
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #24292f }
  .title { font-size: 15px; font-weight: 600 }
  .axis { fill: #57606a }
  line { stroke: #d0d7de }
  .s0 { fill: #cf222e } .s1 { fill: #bf8700 } .s2 { fill: #1a7f37 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .axis { fill: #9198a1 } line { stroke: #3d444d }
    .s0 { fill: #ff7b72 } .s1 { fill: #e3b341 } .s2 { fill: #56d364 }
  }
"""


def bars(title: str, panels: dict[str, Panel]) -> str:
    """One panel below the other, groups side by side, one bar per series, up to three. Values must be positive."""
    height = TOP + len(panels) * (PANEL + 60)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<text x="12" y="22" class="title">{escape(title)}</text>',
    ]
    names = list(next(iter(next(iter(panels.values())).values())))
    x = 12
    for index, name in enumerate(names):
        out.append(f'<rect class="s{index}" x="{x}" y="34" width="11" height="11" rx="2"/>')
        out.append(f'<text x="{x + 16}" y="44">{escape(name)}</text>')
        x += 40 + 7 * len(name)
    values = [value for panel in panels.values() for group in panel.values() for value in group.values()]
    low = math.floor(math.log10(min(values)))
    high = max(low + 1, math.ceil(math.log10(max(values))))
    for number, (name, panel) in enumerate(panels.items()):
        out += _panel(name, panel, TOP + number * (PANEL + 60), low, high)
    return "\n".join([*out, "</svg>", ""])


def _panel(name: str, panel: Panel, top: float, low: int, high: int) -> list[str]:
    bottom = top + 20 + PANEL

    def y(value: float) -> float:
        return bottom - (math.log10(value) - low) / (high - low) * (PANEL - 14)

    out = [f'<text x="12" y="{top + 12}">{escape(name)}</text>']
    for power in range(low, high + 1):
        at = y(10.0**power)
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        out.append(f'<text class="axis" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    step = (WIDTH - LEFT - RIGHT) / len(panel)
    for index, (group, series) in enumerate(panel.items()):
        middle = LEFT + step * (index + 0.5)
        left = middle - BAR * 1.2 * len(series) / 2
        for number, (who, value) in enumerate(series.items()):
            at, x = y(value), left + BAR * 1.2 * number
            out.append(
                f'<rect class="s{number}" x="{x:.1f}" y="{at:.1f}" width="{BAR}" height="{bottom - at:.1f}" rx="2">'
                f"<title>{escape(group)}, {escape(who)}: {value:.2f}</title></rect>"
            )
            out.append(f'<text x="{x + BAR / 2:.1f}" y="{at - 3:.1f}" text-anchor="middle">{_short(value)}</text>')
        out.append(
            f'<text class="axis" x="{middle:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{escape(group)}</text>'
        )
    return out


def _short(value: float) -> str:
    """Two digits, and never an exponent."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"

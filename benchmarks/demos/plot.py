"""The study as a figure: each arm's mean with its interval, and every seed as a dot. SVG by hand, like `chart`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from benchmarks.chart import LEFT, RIGHT, STYLE, WIDTH
from benchmarks.demos.study import ARMS, Interval, Seed, interval

ROW, TOP, LABEL = 30, 74, 170
_STYLE = """
  .dot { fill: #57606a; opacity: 0.35 } .whisker { stroke: #24292f; stroke-width: 2 }
  @media (prefers-color-scheme: dark) { .dot { fill: #9198a1 } .whisker { stroke: #e6edf3 } }
"""
_COLOURS = {"consensus": "s2", "one liar": "s1", "one cunning liar": "s0"}


def figure(panels: Mapping[int, Sequence[Seed]]) -> str:
    """One panel for each k, arms below each other, percent of dev answered right along the scale."""
    title = "Demos chosen by four nodes, by one and by chance: share of dev answered right, %"
    height = TOP + sum(len(ARMS) * ROW + 60 for _ in panels)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}">',
        f"<style>{STYLE}{_STYLE}</style>",
        f'<text x="12" y="22" class="title">{escape(title)}</text>',
        '<text x="12" y="44" class="axis">mean and 95 % interval over seeds; a dot is a seed</text>',
    ]
    top = TOP
    for k, seeds in panels.items():
        out += _panel(k, seeds, top)
        top += len(ARMS) * ROW + 60
    return "\n".join([*out, "</svg>", ""])


def _panel(k: int, seeds: Sequence[Seed], top: int) -> list[str]:
    most = 100 * max(one.scores[arm] for one in seeds for arm in ARMS)
    step = 2 if most <= 20 else 5
    high = (int(most) // step + 1) * step
    left = LEFT + LABEL - 56

    def x(percent: float) -> float:
        return left + percent / high * (WIDTH - RIGHT - 80 - left)

    bottom = top + 10 + len(ARMS) * ROW
    out = [f'<text x="12" y="{top}" class="title">k = {k}, {len(seeds)} seeds</text>']
    for mark in range(0, high + 1, step):
        out.append(f'<line x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{top + 10}" y2="{bottom}"/>')
        out.append(f'<text class="axis" x="{x(mark):.1f}" y="{bottom + 16}" text-anchor="middle">{mark}</text>')
    for place, arm in enumerate(ARMS):
        own = [100 * one.scores[arm] for one in seeds]
        out += _row(arm, own, interval(own), top + 10 + place * ROW + ROW // 2, x(0), x)
    return out


def _row(arm: str, own: Sequence[float], mean: Interval, y: int, zero: float, x: object) -> list[str]:
    assert callable(x)
    low, high = mean.mean - mean.half, mean.mean + mean.half
    return [
        f'<text x="12" y="{y + 4}">{escape(arm)}</text>',
        f'<rect class="{_COLOURS.get(arm, "dot")}" x="{zero:.1f}" y="{y - 8}" width="{x(mean.mean) - zero:.1f}" '
        f'height="16" rx="2"><title>{escape(arm)}: {mean.mean:.1f} ± {mean.half:.1f}</title></rect>',
        *(f'<circle class="dot" cx="{x(value):.1f}" cy="{y}" r="2.5"/>' for value in own),
        f'<line class="whisker" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y}" y2="{y}"/>',
        f'<text x="{WIDTH - RIGHT}" y="{y + 4}" text-anchor="end">{mean.mean:.1f} ± {mean.half:.1f}</text>',
    ]

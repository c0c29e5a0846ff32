"""A curve in the terminal: each value as a dot, the best so far as a line."""

from __future__ import annotations

from collections.abc import Sequence

DOT, LINE = "●", "─"


def plot(points: Sequence[tuple[float, float]], *, width: int = 60, height: int = 10, unit: str = "") -> list[str]:
    """Lines of text for points (x, y), x ascending; y on the left, the ends of x below. None for no points."""
    if not points:
        return []
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = _round_out(min(ys), max(ys))
    cells = [[" "] * width for _ in range(height)]

    def column(x: float) -> int:
        return round((x - xs[0]) / (xs[-1] - xs[0]) * (width - 1)) if xs[-1] > xs[0] else 0

    def row(y: float) -> int:
        return height - 1 - round((y - low) / (high - low) * (height - 1))

    best, reached = points[0][1], 0
    for x, y in points:
        for between in range(reached, column(x)):
            cells[row(best)][between] = LINE
        reached, best = column(x), max(best, y)
    for between in range(reached, width):
        cells[row(best)][between] = LINE
    for x, y in points:
        cells[row(y)][column(x)] = DOT
    labels = {0: f"{high:g}", height // 2: f"{low + (high - low) * (height - 1 - height // 2) / (height - 1):.3g}"}
    labels[height - 1] = f"{low:g}"
    margin = max(map(len, labels.values()))
    lines = [f"{labels.get(number, ''):>{margin}} ┤{''.join(cells[number]).rstrip()}" for number in range(height)]
    first, last = f"{xs[0]:g}{unit}", f"{xs[-1]:g}{unit}"
    lines.append(f"{'':>{margin}} └{'─' * width}")
    lines.append(f"{'':>{margin}}  {first}{last:>{width - len(first)}}")
    return lines


def _round_out(low: float, high: float) -> tuple[float, float]:
    """Ends of an axis that hold all values: whole, and never the same."""
    bottom, top = float(int(low // 1)), float(-int(-high // 1))
    return (bottom, top) if top > bottom else (bottom - 1, top + 1)

from __future__ import annotations

from meshnode.cli.plot import DOT, LINE, plot


def test_dots_stand_where_the_values_are_and_the_line_follows_the_best() -> None:
    lines = plot([(0, 10), (5, 30), (10, 20)], width=11, height=3, unit=" s")
    assert lines == [
        f"30 ┤     {DOT}{LINE * 5}",
        f"20 ┤          {DOT}",
        f"10 ┤{DOT}{LINE * 4}",
        f"   └{LINE * 11}",
        "    0 s    10 s",
    ]


def test_one_value_and_equal_values_have_an_axis_too() -> None:
    assert plot([]) == []
    for points in ([(3.0, 50.0)], [(1.0, 50.0), (2.0, 50.0)]):
        lines = plot(points, width=20, height=5)
        assert lines[0].startswith("51 ┤")
        assert lines[2].startswith(f"50 ┤{DOT}")
        assert sum(line.count(DOT) for line in lines) == len(points)


def test_every_value_finds_a_place_in_the_picture() -> None:
    points = [(float(x), float((x * 37) % 101) / 7) for x in range(100)]
    lines = plot(points, width=30, height=8)
    assert len(lines) == 10
    assert len({len(line.split("┤")[0]) for line in lines[:8]}) == 1
    assert all(len(line.split("┤")[1]) <= 30 for line in lines[:8])

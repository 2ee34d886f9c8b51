"""Plots are well-formed and their points lie where the axes say."""

import xml.etree.ElementTree as ET

import pytest

from aimamba.evaluation.plots import Series, plot

NAMESPACE = "{http://www.w3.org/2000/svg}"


def circles(root):
    return [(float(each.get("cx")), float(each.get("cy"))) for each in root.iter(f"{NAMESPACE}circle")]


def tick(root, text, axis):
    """Where the number stands along an axis."""
    [found] = {
        each.get(axis) for each in root.iter(f"{NAMESPACE}text") if each.text == text and each.get("font-size") == "11"
    }
    return float(found)


def test_points_lie_where_the_axes_say():
    root = ET.fromstring(
        plot("a < b", "x & y", "y", [Series("one", [(1.0, 20.0), (3.0, 40.0)]), Series("two", [(2.0, 30.0)])])
    )
    first, last, middle = circles(root)
    assert first[0] == pytest.approx(tick(root, "1", "x"), abs=0.1)
    assert last[0] == pytest.approx(tick(root, "3", "x"), abs=0.1)
    assert middle == (pytest.approx((first[0] + last[0]) / 2), pytest.approx((first[1] + last[1]) / 2))
    assert first[1] == pytest.approx(tick(root, "20", "y") - 4, abs=0.1)  # the number's base line is a little lower
    assert last[1] < first[1]
    texts = [each.text for each in root.iter(f"{NAMESPACE}text")]
    assert {"a < b", "x & y", "one", "two"} <= set(texts)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_names_of_lines_stand_below_the_axes_and_inside(count):
    names = [f"line {number}" for number in range(count)]
    root = ET.fromstring(plot("", "axis", "", [Series(name, [(0.0, 0.0), (1.0, 1.0)]) for name in names]))
    places = {each.text: (float(each.get("x")), float(each.get("y"))) for each in root.iter(f"{NAMESPACE}text")}
    assert len({places[name] for name in names}) == count
    for name in names:
        assert places["axis"][1] + 10 < places[name][1] < float(root.get("height"))


@pytest.mark.parametrize("y", [0.0, 5.0, -2e-5])
def test_a_single_point(y):
    root = ET.fromstring(plot("", "", "", [Series("", [(1.0, y)], ["mark"])]))
    [(x, height)] = circles(root)
    assert 0 < x < 420
    assert 0 < height < 280


def test_given_ranges():
    root = ET.fromstring(plot("", "", "", [Series("", [(0.2, 9.0)])], x_range=(0.0, 1.0), y_range=(0.0, 10.0)))
    [(x, _)] = circles(root)
    left, right = tick(root, "0.2", "x"), tick(root, "0.8", "x")
    assert x == pytest.approx(left, abs=0.1)
    assert left < right

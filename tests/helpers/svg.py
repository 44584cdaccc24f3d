"""Charts as tests look at them."""

import re
from xml.etree import ElementTree

from w2v_lightning.reporting.charts import Chart

SVG = "{http://www.w3.org/2000/svg}"


def tree(chart: Chart) -> ElementTree.Element:
    """Parse the chart's file; raises if it is not XML, which browsers would forgive and viewers of SVG not."""
    return ElementTree.fromstring(chart.standalone)


def titled(chart: Chart) -> dict[str, ElementTree.Element]:
    """Parts of a chart with a tooltip, by tooltip."""
    groups = {group.find(f"{SVG}title"): group for group in tree(chart).iter(f"{SVG}g")}
    return {title.text: group for title, group in groups.items() if title is not None}


def mark(group: ElementTree.Element) -> tuple[float, float]:
    """Place of a marker."""
    use = next(group.iter(f"{SVG}use"))
    return float(use.get("x")), float(use.get("y"))


def box(group: ElementTree.Element) -> tuple[float, float, float, float]:
    """Least x, least y, greatest x and greatest y of a bar."""
    return extent(next(group.iter(f"{SVG}path")).get("d"))


def extent(path: str) -> tuple[float, float, float, float]:
    """Bounds of a path."""
    numbers = [float(value) for value in re.findall(r"-?[\d.]+", path)]
    xs, ys = numbers[::2], numbers[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def texts(chart: Chart) -> list[tuple[str, float, float]]:
    """Every text with its place."""
    found = []
    for text in tree(chart).iter(f"{SVG}text"):
        turned = re.search(r"translate\((\S+) (\S+)\)", text.get("transform") or "")
        x, y = turned.groups() if turned else (text.get("x"), text.get("y"))
        found.append((text.text or "", float(x), float(y)))
    return found

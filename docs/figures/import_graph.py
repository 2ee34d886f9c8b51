"""Plot the import graph of the package: ``python docs/figures/import_graph.py [OUT]``, by default import-graph.png.

Each box is a package or module directly below ``aimamba``. The layers come from the import-linter contract in
pyproject.toml, the imports from grimp, which import-linter is built on. Needs matplotlib.
"""

import re
import sys
import textwrap
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

import grimp
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as MplPath
from PIL import Image
from PIL.PngImagePlugin import PngInfo

ROOT = Path(__file__).parent.parent.parent
PACKAGE = "aimamba"
ENTRIES = ("__init__", "__main__")  # names for users, which re-export; no part of the architecture
EVERYWHERE = 4  # the lowest layers, which every room may import: boxes without arrows
INK, MUTED = "#1f2933", "#5f6b7a"
PURPOSE = {
    "cli": "parse, call, print",
    "serve": "HTTP, requests, limits",
    "studies": "several runs, one question",
    "train": "one loop, two tasks, recipes",
    "evaluation": "features, metrics, reports",
    "pipeline": "class name to image",
    "generation": "decoding loop",
    "data": "image sets, codes, sheets",
    "models": "nn.Modules: AiM, VQModel",
    "networks": "frozen feature networks",
    "checkpoints": "files to config and tensors",
    "ops": "tensor functions and kernels",
    "seeds": "random generators",
    "distributed": "processes of one job",
    "sharing": "units of work for many processes",
    "cluster": "workers on a Ray",
    "watch": "lost processes",
    "config": "strict dataclasses",
    "documents": "strict JSON and TOML",
    "devices": "device and dtype by name",
    "errors": "one-line errors",
    "files": "atomic writes, cache",
    "cores": "how many there are",
    "inference": "undisturbed by callers",
    "signals": "what stops a command",
}
FILLS = {
    "#e8f0f7": ("cli", "studies"),
    "#e6f3ec": ("serve", "train", "evaluation", "pipeline"),
    "#fbefe7": ("generation", "data", "models", "networks"),
}
FOUNDATION_FILL = "#f1eef6"
WIDTH, HEIGHT, GAP = 3.9, 1.14, 1.6  # of a box, and from layer to layer
COLUMN = 2.9  # of the rooms that share a layer, on either side of the middle
CLOSER = 3  # so many rooms of a layer stand closer together
COLUMNS = {"networks": 3.4, "checkpoints": 2.3, "ops": -2.3}  # alone on their layer, but not in the middle
TRUNK = 6.7  # beside all boxes

Edge = tuple[str, str]
Point = tuple[float, float]
EDGES_KEY = "imports"


def read_layers(pyproject: Path = ROOT / "pyproject.toml") -> list[list[str]]:
    """Return the layers from top to bottom, each with the rooms that share it; optional ones, in brackets, left out."""
    [contract] = tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    layers = [[room.strip() for room in re.split(r"[|:]", layer)] for layer in contract["layers"]]
    kept = [[room for room in layer if not room.startswith("(") and room not in ENTRIES] for layer in layers]
    return [layer for layer in kept if layer]


def read_graph() -> tuple[set[Edge], dict[str, list[str]]]:
    """Return the imports between rooms as (importer, imported), and the packages inside each room."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    edges, inside = set(), {}
    for module in graph.modules:
        if room := _room(module):
            for imported in graph.find_modules_directly_imported_by(module):
                if (other := _room(imported)) and other != room:
                    edges.add((room, other))
            if module.count(".") == 1:
                packages = (child for child in graph.find_children(module) if graph.find_children(child))
                inside[room] = sorted(package.rpartition(".")[2] for package in packages)
    return edges, inside


def _room(module: str) -> str | None:

    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] not in ENTRIES else None


def upward_edges(edges: Iterable[Edge], layers: Sequence[Sequence[str]]) -> list[Edge]:
    """Return the imports that do not lead to a lower layer."""
    level = {room: number for number, layer in enumerate(layers) for room in layer}
    return sorted(edge for edge in edges if level[edge[0]] >= level[edge[1]])


def direct_edges(edges: set[Edge]) -> set[Edge]:
    """Return the imports that no longer way round replaces (the transitive reduction of an acyclic graph)."""
    after: dict[str, set[str]] = {}
    for importer, imported in edges:
        after.setdefault(importer, set()).add(imported)

    def reach(room: str) -> set[str]:
        return {room}.union(*(reach(other) for other in after.get(room, ())))

    return {(a, b) for a, b in edges if not any(b in reach(other) for other in after[a] if other != b)}


def place_rooms(layers: Sequence[Sequence[str]]) -> dict[str, Point]:
    """Return the centre of each room's box."""
    places = {}
    for number, layer in enumerate(layers):
        for index, room in enumerate(layer):
            apart = COLUMN if len(layer) < CLOSER else COLUMN * 0.74
            x = COLUMNS.get(room, apart * (2 * index - len(layer) + 1))
            places[room] = (x, -number * GAP)
    return places


def route(edge: Edge, places: dict[str, Point]) -> list[Point]:
    """Return the corners of an arrow: a straight line from bottom to top, or a way around other boxes."""
    (x, y), (x2, y2) = places[edge[0]], places[edge[1]]
    if edge == ("train", "networks"):
        between = y - GAP / 2
        return [(x + 1.2, y - HEIGHT / 2), (x + 1.2, between), (TRUNK, between), (TRUNK, y2), (x2 + WIDTH / 2, y2)]
    if edge == ("evaluation", "networks"):
        return [(x + WIDTH / 2, y), (TRUNK, y), (TRUNK, y2), (x2 + WIDTH / 2, y2)]
    if edge == ("cli", "serve"):
        return [(x - WIDTH / 2, y), (x2, y), (x2, y2 + HEIGHT / 2)]
    if edge[1] == "pipeline" and x != x2:
        return [(x, y - HEIGHT / 2), (x, y2), (x2 + (WIDTH / 2 if x > x2 else -WIDTH / 2), y2)]
    lean = max(-0.3 * WIDTH, min(0.3 * WIDTH, 0.35 * (x2 - x)))
    return [(x + lean, y - HEIGHT / 2), (x2 - lean, y2 + HEIGHT / 2)]


def plot(edges: set[Edge], inside: dict[str, list[str]], layers: Sequence[Sequence[str]], out: Path) -> None:
    """Write the figure to ``out``: arrows for direct imports, and the others by name in the importer's box."""
    mpl.rcParams.update({"font.family": "DejaVu Sans", "font.size": 10})
    places = place_rooms(layers)
    foundation = {room for layer in layers[-EVERYWHERE:] for room in layer}
    shown = {edge for edge in edges if edge[1] not in foundation}
    direct = direct_edges(shown)
    figure = Figure(figsize=(10.4, 0.95 * len(layers)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-7, 7), ylim=(-(len(layers) - 1) * GAP - 1.15, 0.8))
    axes.axis("off")
    for edge in sorted(direct):
        _arrow(axes, route(edge, places))
    for room, place in places.items():
        also = sorted(imported for importer, imported in shown - direct if importer == room)
        lines = [PURPOSE.get(room, ""), " · ".join(inside.get(room, ())), f"also: {', '.join(also)}" if also else ""]
        _box(axes, room, place, [part for line in lines for part in textwrap.wrap(line, 54)])
    level = -(len(layers) - EVERYWHERE - 0.5) * GAP
    axes.plot((-6.8, 6.8), (level, level), color=MUTED, linewidth=1, linestyle=(0, (4, 4)))
    note = "Arrows: direct imports. “also”: imports that skip layers. Below the dashed line: open to all."
    axes.text(0, -(len(layers) - 1) * GAP - 0.85, note, ha="center", va="center", color=MUTED, fontsize=8.5)
    figure.savefig(out, dpi=150, metadata={"Software": None})
    with Image.open(out) as image:  # few colours make a small file
        small = image.convert("RGB").quantize(64, dither=Image.Dither.NONE)
    text = PngInfo()
    text.add_text(EDGES_KEY, write_edges(edges))
    small.save(out, optimize=True, pnginfo=text)


def write_edges(edges: Iterable[Edge]) -> str:
    """Return the edges as text, which is kept in the figure, so that a test can see whether it is up to date."""
    return ", ".join(f"{importer} -> {imported}" for importer, imported in sorted(edges))


def _arrow(axes: Axes, corners: Sequence[Point]) -> None:
    path = MplPath(corners)
    axes.add_patch(
        FancyArrowPatch(
            path=path,
            arrowstyle="-|>,head_length=5,head_width=2.8",
            color=INK,
            linewidth=1.4,
            joinstyle="round",
            zorder=1,
        )
    )


def _box(axes: Axes, room: str, place: Point, lines: Sequence[str]) -> None:
    x, y = place
    fill = next((fill for fill, rooms in FILLS.items() if room in rooms), FOUNDATION_FILL)
    shape = FancyBboxPatch(
        (x - WIDTH / 2, y - HEIGHT / 2), WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=0.12", zorder=2
    )
    shape.set(facecolor=fill, edgecolor=MUTED, linewidth=1.1)
    axes.add_patch(shape)
    height = y + 0.105 * len(lines)
    axes.text(x, height, room, ha="center", va="center", color=INK, fontsize=11, weight="bold", zorder=3)
    for number, line in enumerate(lines, start=1):
        axes.text(
            x, height - 0.03 - 0.205 * number, line, ha="center", va="center", color=MUTED, fontsize=7.6, zorder=3
        )


def main(out: Path) -> None:
    """Check the layers and write the figure.

    Raises:
        SystemExit: An import leads upward or sideways.
    """
    edges, inside = read_graph()
    layers = read_layers()
    if found := upward_edges(edges, layers):
        raise SystemExit(f"imports that lead to no lower layer: {', '.join(f'{a} -> {b}' for a, b in found)}")
    plot(edges, inside, layers, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "import-graph.png")

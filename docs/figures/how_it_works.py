"""Make how-it-works.svg, and how-it-works.png from it: ``.venv/bin/python docs/figures/how_it_works.py``.

The layout is set by hand. The image is an avatar (style sprouts, CC0 1.0), and each code has the mean colour of the
patch that it stands for. Deterministic, apart from the fonts of the machine.
"""

import io
import json
import re
from importlib.resources import files
from pathlib import Path

import dicebear
import resvg_py
from PIL import Image

HERE = Path(__file__).parent
STYLE, SEED, GRID = "sprouts", "sprouts-7", 16
WIDTH, HEIGHT = 800, 470
SIDE = 112  # of images and grids
INK, MUTED, LINE = "#1f2933", "#5f6b7a", "#c9d1da"
BLUE, BLUE_PALE = "#2f6690", "#e8f0f7"
RUST, RUST_PALE = "#a8502a", "#fbefe7"
GREEN, GREEN_PALE = "#2f7a55", "#e6f3ec"
UNKNOWN = "#eef1f4"
SAMPLED = 7 * GRID + 5  # tokens of the lower grid that are sampled already
COLUMNS = [160 + 54 * i for i in range(6)]  # of the tokens
TOKEN = 30


def avatar() -> str:
    """Return the SVG of the image, without header and comments."""
    style = dicebear.Style(json.loads(files("dicebear_styles").joinpath(f"{STYLE}.json").read_text()))
    text = dicebear.Avatar(style, {"seed": SEED, "size": 96}).to_string()
    return re.sub(r"<!--.*?-->|<metadata.*?</metadata>", "", text, flags=re.DOTALL)


def colours(svg: str) -> list[str]:
    """Return the mean colour of each cell of the grid, in raster order."""
    image = Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg))).convert("RGB")
    small = image.resize((GRID, GRID), Image.Resampling.BOX)
    return ["#{:02x}{:02x}{:02x}".format(*small.getpixel((i % GRID, i // GRID))) for i in range(GRID * GRID)]


def text(x: float, y: float, words: str, *, size: float = 13, fill: str = INK, anchor: str = "middle", more="") -> str:
    """Return one line of text."""
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}" text-anchor="{anchor}" {more}>{words}</text>'


def arrow(path: str, *, stroke: str = MUTED, dashed: bool = False) -> str:
    """Return a path with an arrow head."""
    dash = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<path d="{path}" fill="none" stroke="{stroke}" stroke-width="1.6"{dash} marker-end="url(#{stroke[1:]})"/>'


def head(stroke: str) -> str:
    """Return the head of arrows of one colour."""
    return (
        f'<marker id="{stroke[1:]}" viewBox="0 0 10 10" refX="8.5" refY="5" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 1L9 5L0 9Z" fill="{stroke}"/></marker>'
    )


def box(x: float, y: float, w: float, h: float, fill: str, stroke: str, *, radius: float = 8, more: str = "") -> str:
    """Return a rounded rectangle."""
    frame = f'fill="{fill}" stroke="{stroke}" stroke-width="1.4"'
    return f'<rect x="{x}" y="{y}" width="{w}" height="{h}" rx="{radius}" {frame} {more}/>'


def grid(x: float, y: float, cells: list[str]) -> str:
    """Return codes as coloured cells."""
    step = SIDE / GRID
    squares = (
        f'<rect x="{x + i % GRID * step + 0.5:g}" y="{y + i // GRID * step + 0.5:g}" width="{step - 1:g}" '
        f'height="{step - 1:g}" rx="1" fill="{cell}"/>'
        for i, cell in enumerate(cells)
    )
    return "".join(squares)


def token(x: float, y: float, label: str, fill: str, *, stroke: str = LINE, ink: str = INK) -> str:
    """Return a token centred at x, its top at y."""
    square = box(x - TOKEN / 2, y, TOKEN, TOKEN, fill, stroke, radius=5)
    return square + text(x, y + TOKEN / 2 + 4.5, label, size=12.5, fill=ink)


def heading(y: float, number: str, name: str, words: str, colour: str) -> str:
    """Return number and name of a half in bold, then what it does."""
    bold = f'<tspan font-size="16" font-weight="bold" fill="{colour}">{number}</tspan>'
    bold += f'<tspan dx="10" font-size="16" font-weight="bold" fill="{INK}">{name}</tspan>'
    return text(24, y, f'{bold}<tspan dx="9">{words}</tspan>', fill=MUTED, anchor="start")


def sub(letter: str, index: str) -> str:
    """Return a letter with an index."""
    return f'<tspan font-style="italic">{letter}</tspan><tspan font-size="9" dy="3">{index}</tspan>'


def tokenizer(cells: list[str]) -> list[str]:
    """Return the upper half: image, encoder, codes, decoder, image."""
    top, middle = 56, 112
    return [
        heading(34, "1", "Tokenizer", "encodes an image as a grid of codes, and decodes codes to an image", BLUE),
        f'<use href="#image" x="24" y="{top}" width="{SIDE}" height="{SIDE}"/>',
        arrow(f"M142 {middle}H176", stroke=BLUE),
        f'<path d="M182 {top + 8}L292 {top + 32}V{top + 80}L182 {top + 104}Z" fill="{BLUE_PALE}" stroke="{BLUE}" '
        'stroke-width="1.4" stroke-linejoin="round"/>',
        text(235, middle + 5, "encoder", size=14.5, fill=BLUE),
        arrow(f"M298 {middle}H336", stroke=BLUE),
        grid(344, top, cells),
        arrow(f"M462 {middle}H498", stroke=BLUE),
        f'<path d="M504 {top + 32}L614 {top + 8}V{top + 104}L504 {top + 80}Z" fill="{BLUE_PALE}" stroke="{BLUE}" '
        'stroke-width="1.4" stroke-linejoin="round"/>',
        text(561, middle + 5, "decoder", size=14.5, fill=BLUE),
        arrow(f"M620 {middle}H656", stroke=BLUE),
        f'<use href="#image" x="664" y="{top}" width="{SIDE}" height="{SIDE}"/>',
        text(80, top + 130, "256 &#215; 256 pixels", size=12.5, fill=MUTED),
        text(400, top + 130, "16 &#215; 16 codes, each one of 16,384", size=12.5, fill=MUTED),
        text(720, top + 130, "256 &#215; 256 pixels", size=12.5, fill=MUTED),
    ]


def generator(cells: list[str]) -> list[str]:
    """Return the lower half: class and tokens so far, blocks, next tokens, grid."""
    out, block, into = 266, 316, 406
    labels = [sub("c", "1"), sub("c", "2"), sub("c", "3"), "…", sub("c", "t")]
    shown = [cells[0], cells[1], cells[2], None, cells[SAMPLED - 1]]
    parts = [
        heading(238, "2", "Generator", "predicts one token after another, given a class", RUST),
        box(128, block, 334, 70, RUST_PALE, RUST),
        text(295, block + 28, "Mamba-2 blocks", size=15, fill=RUST),
        text(295, block + 59, "one state of bounded size, carried from token to token", size=11.5, fill=MUTED),
        arrow(f"M140 {block + 42}H452", stroke=RUST),
        # the condition
        box(24, into, 84, TOKEN, GREEN_PALE, GREEN, radius=15),
        text(66, into + 19.5, f"“{STYLE}”", size=12.5, fill=GREEN),
        text(66, into + 48, "class vector", size=12, fill=MUTED),
        arrow(f"M66 {into - 2}V{block + 66}", stroke=GREEN),
        box(24, block + 6, 84, 56, GREEN_PALE, GREEN),
        text(66, block + 29, "adaLN", size=13.5, fill=GREEN),
        text(66, block + 47, "group", size=13.5, fill=GREEN),
        arrow(f"M110 {block + 34}H126", stroke=GREEN),
        arrow(f"M110 {into + TOKEN / 2}H{COLUMNS[0] - TOKEN / 2 - 3}", stroke=GREEN),
        token(COLUMNS[0], into, "class", GREEN_PALE, stroke=GREEN, ink=GREEN).replace("12.5", "9.5"),
    ]
    for column, label, cell in zip(COLUMNS[1:], labels, shown, strict=True):
        parts.append(token(column, into, label, "#ffffff"))
        if cell is not None:
            parts.append(
                f'<rect x="{column - 9}" y="{into + TOKEN - 5}" width="18" height="3" rx="1.5" fill="{cell}"/>'
            )
    nexts = [*labels, sub("c", "t+1")]
    for i, (column, label) in enumerate(zip(COLUMNS, nexts, strict=True)):
        newest = i == len(COLUMNS) - 1
        parts.append(arrow(f"M{column} {into - 2}V{block + 73}"))
        parts.append(arrow(f"M{column} {block - 2}V{out + TOKEN + 3}"))
        parts.append(token(column, out, label, RUST_PALE if newest else "#ffffff", stroke=RUST if newest else LINE))
    right, x, y = COLUMNS[-1] + TOKEN / 2, 504, 282
    level = out + TOKEN / 2
    ghost = token(484, into, nexts[-1], "#ffffff", stroke=RUST, ink=RUST).replace(
        "<rect", '<rect stroke-dasharray="4 3"'
    )
    parts += [
        arrow(f"M{right + 3} {level}H476Q484 {level} 484 {level + 8}V{into - 3}", stroke=RUST, dashed=True),
        ghost,
        text(295, into + 48, "tokens so far", size=12, fill=MUTED),
        text(508, into + 19.5, "the sampled token is the next input", size=12.5, fill=RUST, anchor="start"),
        grid(x, y, [cell if i < SAMPLED else UNKNOWN for i, cell in enumerate(cells)]),
        f'<rect x="{x + SAMPLED % GRID * 7 - 0.5}" y="{y + SAMPLED // GRID * 7 - 0.5}" width="8" height="8" rx="1.5" '
        f'fill="{RUST_PALE}" stroke="{RUST}" stroke-width="1.6"/>',
        arrow(f"M560 {y - 6}V{56 + 104}", stroke=BLUE, dashed=True),
        text(572, 262, "all 256 sampled: to the decoder", size=12.5, fill=BLUE, anchor="start"),
    ]
    notes = ("row by row, left to right", "256 steps per image,", "at nearly the same cost")
    parts += [text(628, y + 34 + 22 * i, note, size=12.5, fill=MUTED, anchor="start") for i, note in enumerate(notes)]
    return parts


def main() -> None:
    """Write both files."""
    image = avatar()
    cells = colours(image)
    inner = image[image.index(">") + 1 : image.rindex("</svg>")]
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        "font-family=\"'Helvetica Neue', Helvetica, Arial, 'DejaVu Sans', sans-serif\">",
        "<title>How AiM works</title>",
        f"<defs>{''.join(map(head, (MUTED, BLUE, RUST, GREEN)))}",
        f'<symbol id="image" viewBox="0 0 100 100">{inner}</symbol></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#ffffff"/>',
        f'<path d="M24 206H776" stroke="{LINE}" stroke-width="1"/>',
        *tokenizer(cells),
        *generator(cells),
        "</svg>\n",
    ]
    svg = "\n".join(body)
    (HERE / "how-it-works.svg").write_text(svg, encoding="utf-8")
    (HERE / "how-it-works.png").write_bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * WIDTH))


if __name__ == "__main__":
    main()

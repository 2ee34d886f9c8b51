"""Images to look at: contact sheets with names, and the way between tensors and Pillow's images."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Resampling
from torch import Tensor

from aimamba.data.fonts import Font, typeset

_SMALLEST_CELL = 64  # pixels; smaller images are magnified
_ROOM_FOR_NAMES = 128  # pixels, to which images are magnified further if column names are long
_LONGEST_ROW_NAME = 240
_SMALLEST_FONT = 12
_LARGEST_FONT = 18
_ROOM_FOR_TITLE = 360  # pixels, to which a sheet is widened if its title is that long
_LINES_OF_TITLE = 24
_MEASURED = 2048  # characters of a text whose width is taken; no cell has room for more
_FEWEST, _NARROWEST = 16, 2  # characters that are tried for a line, and the pixels of each, at least
_LINES_OF_COLUMN = 3
_LONGEST_SIDE = 9000  # pixels of a page
_MOST_COLUMNS = 32
_INK = (64, 64, 64)
_PALE = (128, 128, 128)


def to_float(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Convert 8-bit images (B, 3, H, W) to float32 in [-1, 1], the tokenizer's input."""
    return images.float() / 127.5 - 1.0


def to_uint8(images: Float[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b 3 h w"]:
    """Convert images in [-1, 1] to 8 bits, without gradient; values outside are clamped.

    Rounds as LlamaGen does: ``clamp(127.5 x + 128, 0, 255)``, truncated. This inverts ``to_float`` exactly.
    """
    return (127.5 * images.detach().float() + 128.0).clamp(0, 255).to(torch.uint8).contiguous()


def to_pil(images: UInt8[Tensor, "b 3 h w"]) -> list[Image.Image]:
    """Convert 8-bit images (B, 3, H, W), on any device, to B RGB images of Pillow."""
    return [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).contiguous().cpu().numpy()]


class Page(NamedTuple):
    """How many images fit on a sheet of at most 9,000 pixels a side, not counting names."""

    rows: int
    columns: int


def page_of(size: int) -> Page:
    """Return how many images of a size in pixels a sheet should hold; at most 32 columns, and at least one image."""
    cell = size * -(-_SMALLEST_CELL // size)
    most = max(1, _LONGEST_SIDE // (cell + _gutter(cell)))
    return Page(most, min(_MOST_COLUMNS, most))


def sheet(
    rows: Sequence[Sequence[Image.Image]],
    *,
    row_names: Sequence[str] | None = None,
    column_names: Sequence[str] | None = None,
    title: str | None = None,
) -> Image.Image:
    """Arrange images in a labelled grid on white.

    Images below 64 pixels (up to 128 if column names are long) are magnified by a whole factor without smoothing, so
    that every pixel can be seen. Rows may differ in length. Text of every script is shown, see ``fonts``. The title
    takes as many lines as it needs, up to 24. Names of rows and columns take the lines that their cells have room for.
    What is longer ends in an ellipsis.

    Args:
        rows: Images, row by row.
        row_names: Text to the left of the rows.
        column_names: Text above the columns.
        title: Small grey text above the sheet.

    Returns:
        RGB image.

    Raises:
        ValueError: There is no image, or the number of names is not that of the rows or columns.
    """
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise ValueError("a sheet needs at least one image")
    for names, amount, kind in ((row_names, len(rows), "row"), (column_names, columns, "column")):
        if names is not None and len(names) != amount:
            raise ValueError(f"a sheet of {amount} {kind}s needs as many {kind}_names, got {len(names)}")
    wide = max((_Text.of(name, _SMALLEST_FONT).width for name in column_names or ()), default=0)
    shown = [[_magnify(image, max(_SMALLEST_CELL, min(wide, _ROOM_FOR_NAMES))) for image in row] for row in rows]
    grid = _Grid.around(shown, columns, row_names or (), column_names or (), title)
    canvas = Image.new("RGB", grid.extent(len(rows), columns), "white")
    for row, images in enumerate(shown):
        for column, image in enumerate(images):
            left, top = grid.corner(row, column)
            spare = grid.width - image.width, grid.height - image.height
            canvas.paste(image, (left + spare[0] // 2, top + spare[1] // 2))
    _write(canvas, grid)
    return canvas


class _Text(NamedTuple):
    """Text in the font that has it."""

    text: str
    font: Font

    @classmethod
    def of(cls, text: str, size: int) -> "_Text":
        return cls(*typeset(text, size))

    @property
    def width(self) -> int:
        return math.ceil(self.font.getlength(self.text[:_MEASURED]))

    def lines(self, width: int, most: int | None = None) -> list[str]:
        """Break the text between words, or inside of long ones, into lines of ``width`` pixels, ``most`` of them."""
        lines: list[str] = []
        rest = self.text
        while rest:
            count = self._fitting(rest, width)
            if most is not None and len(lines) == most - 1 and count < len(rest):
                while count and self.font.getlength(f"{rest[:count]}…") > width:
                    count -= 1
                return [*lines, f"{rest[:count].rstrip()}…"]
            space = rest.rfind(" ", 0, count + 1) if count < len(rest) else count
            end = space if space > 0 else count
            lines.append(rest[:end].rstrip())
            rest = rest[end:].lstrip()
        return lines

    def _fitting(self, text: str, width: int) -> int:
        """Return how many characters fit in ``width`` pixels; at least one."""
        low, high = 1, min(len(text), max(_FEWEST, width // _NARROWEST))
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.font.getlength(text[:middle]) <= width else (low, middle - 1)
        return low


class _Words(NamedTuple):
    """Lines of text, ready to be drawn."""

    lines: list[str]
    font: Font


class _Grid(NamedTuple):
    """The layout of a sheet, in pixels."""

    width: int  # of a cell
    height: int
    gutter: int  # between cells; twice as much around them
    left: int  # of the first cell
    top: int
    line: int  # height of a line of text
    least: int  # width of the whole sheet
    rows: list[_Words]
    columns: list[_Words]
    title: _Words | None

    @classmethod
    def around(
        cls,
        shown: list[list[Image.Image]],
        columns: int,
        row_names: Sequence[str],
        column_names: Sequence[str],
        title: str | None,
    ) -> "_Grid":
        """Make cells as large as the largest image and, up to twice as wide, as the longest column name."""
        widest = max(image.width for row in shown for image in row)
        tallest = max(image.height for row in shown for image in row)
        size = min(_LARGEST_FONT, max(_SMALLEST_FONT, tallest // 9))
        beside, above = ([_Text.of(name, size) for name in names] for names in (row_names, column_names))
        heading = _Text.of(title, size) if title else None
        texts = [*beside, *above, *([heading] if heading else [])]
        line = max((_line_height(text.font) for text in texts), default=size)
        gutter = _gutter(widest)
        width = max(widest, min(max((text.width for text in above), default=0), 2 * widest))
        room = min(max((text.width for text in beside), default=0), _LONGEST_ROW_NAME)
        named_columns = [_Words(text.lines(width, _LINES_OF_COLUMN), text.font) for text in above]
        left = 2 * gutter + (room + gutter if beside else 0)
        total = left + columns * (width + gutter) + gutter
        words = None
        if heading is not None:
            total = max(total, min(heading.width + 1, _ROOM_FOR_TITLE) + 4 * gutter)
            words = _Words(heading.lines(total - 4 * gutter, _LINES_OF_TITLE), heading.font)
        top = 2 * gutter
        top += len(words.lines) * line + gutter if words else 0
        top += max(len(column.lines) for column in named_columns) * line + gutter // 2 if named_columns else 0
        return cls(
            width=width,
            height=tallest,
            gutter=gutter,
            left=left,
            top=top,
            line=line,
            least=total,
            rows=[_Words(text.lines(room, max(1, tallest // line)), text.font) for text in beside],
            columns=named_columns,
            title=words,
        )

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Return left and top of a cell."""
        return self.left + column * (self.width + self.gutter), self.top + row * (self.height + self.gutter)

    def extent(self, rows: int, columns: int) -> tuple[int, int]:
        """Return width and height of the whole sheet."""
        right, bottom = self.corner(rows, columns)
        return max(right + self.gutter, self.least), bottom + self.gutter


def _write(canvas: Image.Image, grid: _Grid) -> None:
    pen = ImageDraw.Draw(canvas)
    for row, words in enumerate(grid.rows):
        left, top = grid.corner(row, 0)
        middle = top + grid.height / 2 - grid.line * (len(words.lines) - 1) / 2
        for number, line in enumerate(words.lines):
            right = left - grid.gutter, middle + number * grid.line
            pen.text(right, line, fill=_INK, font=words.font, anchor=_anchor("rm", words.font))
    for column, words in enumerate(grid.columns):
        left, top = grid.corner(0, column)
        for number, line in enumerate(reversed(words.lines)):
            foot = left + grid.width / 2, top - grid.gutter // 2 - number * grid.line
            pen.text(foot, line, fill=_INK, font=words.font, anchor=_anchor("md", words.font))
    if grid.title is not None:
        for number, line in enumerate(grid.title.lines):
            head = 2 * grid.gutter, 2 * grid.gutter + number * grid.line
            pen.text(head, line, fill=_PALE, font=grid.title.font, anchor=_anchor("la", grid.title.font))


def _anchor(anchor: str, font: Font) -> str | None:
    """Return the anchor, which fonts without FreeType do not have."""
    return anchor if isinstance(font, ImageFont.FreeTypeFont) else None


def _line_height(font: Font) -> int:
    return sum(font.getmetrics()) if isinstance(font, ImageFont.FreeTypeFont) else _SMALLEST_FONT


def _gutter(width: int) -> int:
    return max(6, width // 12)


def _magnify(image: Image.Image, least: int) -> Image.Image:
    """Repeat pixels so that the longer side has at least ``least``."""
    factor = -(-least // max(image.size))
    image = image.convert("RGB")
    if factor <= 1:
        return image
    return image.resize((image.width * factor, image.height * factor), Resampling.NEAREST)

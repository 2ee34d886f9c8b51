"""Images to look at: contact sheets with names, and the way between tensors and Pillow's images."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Resampling
from torch import Tensor

_SMALLEST_CELL = 64  # pixels; smaller images are magnified
_ROOM_FOR_NAMES = 128  # pixels, to which images are magnified further if column names are long
_LONGEST_ROW_NAME = 240
_SMALLEST_FONT = 12
_INK = (64, 64, 64)
_PALE = (128, 128, 128)

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


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


def sheet(
    rows: Sequence[Sequence[Image.Image]],
    *,
    row_names: Sequence[str] | None = None,
    column_names: Sequence[str] | None = None,
    title: str | None = None,
) -> Image.Image:
    """Arrange images in a labelled grid on white.

    Images below 64 pixels (up to 128 if column names are long) are magnified by a whole factor without smoothing, so
    that every pixel can be seen. Rows may differ in length. Text that does not fit ends in an ellipsis.

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
    least = max(
        _SMALLEST_CELL, min(_longest(column_names or (), ImageFont.load_default(_SMALLEST_FONT)), _ROOM_FOR_NAMES)
    )
    shown = [[_magnify(image, least) for image in row] for row in rows]
    grid = _Grid.around(shown, row_names or (), column_names or (), title)
    canvas = Image.new("RGB", grid.extent(len(rows), columns), "white")
    for row, images in enumerate(shown):
        for column, image in enumerate(images):
            left, top = grid.corner(row, column)
            spare = grid.width - image.width, grid.height - image.height
            canvas.paste(image, (left + spare[0] // 2, top + spare[1] // 2))
    _write(canvas, grid, row_names or (), column_names or (), title)
    return canvas


class _Grid(NamedTuple):
    """The layout of a sheet, in pixels."""

    width: int  # of a cell
    height: int
    gutter: int  # between cells; twice as much around them
    left: int  # of the first cell
    top: int
    font: _Font

    @classmethod
    def around(
        cls,
        shown: list[list[Image.Image]],
        row_names: Sequence[str],
        column_names: Sequence[str],
        title: str | None,
    ) -> "_Grid":
        """Make cells as large as the largest image and, up to twice as wide, as the longest column name."""
        widest = max(image.width for row in shown for image in row)
        tallest = max(image.height for row in shown for image in row)
        font = ImageFont.load_default(min(18, max(_SMALLEST_FONT, tallest // 9)))
        line = sum(font.getmetrics()) if isinstance(font, ImageFont.FreeTypeFont) else _SMALLEST_FONT
        gutter = max(6, widest // 12)
        beside = min(_longest(row_names, font), _LONGEST_ROW_NAME)
        return cls(
            width=max(widest, min(_longest(column_names, font), 2 * widest)),
            height=tallest,
            gutter=gutter,
            left=2 * gutter + (beside + gutter if row_names else 0),
            top=2 * gutter + (line + gutter if title else 0) + (line + gutter // 2 if column_names else 0),
            font=font,
        )

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Return left and top of a cell."""
        return self.left + column * (self.width + self.gutter), self.top + row * (self.height + self.gutter)

    def extent(self, rows: int, columns: int) -> tuple[int, int]:
        """Return width and height of the whole sheet."""
        right, bottom = self.corner(rows, columns)
        return right + self.gutter, bottom + self.gutter


def _write(
    canvas: Image.Image, grid: _Grid, row_names: Sequence[str], column_names: Sequence[str], title: str | None
) -> None:
    pen = ImageDraw.Draw(canvas)
    for row, name in enumerate(row_names):
        left, top = grid.corner(row, 0)
        label = _fit(name, grid.font, left - 3 * grid.gutter)
        pen.text((left - grid.gutter, top + grid.height / 2), label, fill=_INK, font=grid.font, anchor="rm")
    for column, name in enumerate(column_names):
        left, top = grid.corner(0, column)
        label = _fit(name, grid.font, grid.width)
        pen.text((left + grid.width / 2, top - grid.gutter // 2), label, fill=_INK, font=grid.font, anchor="md")
    if title:
        label = _fit(title, grid.font, canvas.width - grid.left - 2 * grid.gutter)
        pen.text((grid.left, 2 * grid.gutter), label, fill=_PALE, font=grid.font, anchor="la")


def _magnify(image: Image.Image, least: int) -> Image.Image:
    """Repeat pixels so that the longer side has at least ``least``."""
    factor = -(-least // max(image.size))
    image = image.convert("RGB")
    if factor <= 1:
        return image
    return image.resize((image.width * factor, image.height * factor), Resampling.NEAREST)


def _longest(names: Sequence[str], font: _Font) -> int:
    return max((math.ceil(font.getlength(name)) for name in names), default=0)


def _fit(text: str, font: _Font, width: int) -> str:
    """Return the text, or as much of its beginning as fits in ``width`` pixels with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1].rstrip()
    return f"{text}…"

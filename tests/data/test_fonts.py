"""Text on sheets: every script is shown, and nothing as a box."""

import pytest
from PIL import Image, ImageDraw, ImageFont

from aimamba.data import fonts
from aimamba.data.fonts import transliterate, typeset
from aimamba.data.sheets import page_of, sheet

NAMES = ["Café Łódź", "кошка", "猫の写真", "αλεπού", "😀 cat", "عربي", "고양이", "हिन्दी", "𓀀", "e\u0301", "a\u200db"]


def boxes(text, font):
    """Return the characters that the font shows as its box."""
    box = font.getmask("\U0010ffff")
    masks = {char: font.getmask(char) for char in text if not char.isspace()}
    return [char for char, mask in masks.items() if mask.size == box.size and bytes(mask) == bytes(box)]


@pytest.fixture
def no_fonts(monkeypatch):
    monkeypatch.setattr(fonts, "_places", lambda: (None,))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_a_box(name):
    assert boxes(*typeset(name, 14)) == []


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_a_box_where_there_is_no_other_font(name, no_fonts):
    text, font = typeset(name, 14)
    assert boxes(text, font) == []
    assert text.isascii()


def test_plain_text_keeps_pillows_font():
    text, font = typeset("planets, 7", 14)
    assert text == "planets, 7"
    assert font.getname() == ImageFont.load_default(14).getname()


def test_a_font_of_the_machine_shows_what_it_has():
    if len(fonts._places()) == 1:
        pytest.skip("no other font here")
    assert typeset("Łódź", 14)[0] == "Łódź"


@pytest.mark.parametrize(
    ("char", "latin"),
    [
        *(("é", "e"), ("Ł", "L"), ("ß", "ss"), ("ø", "o"), ("ﬁ", "fi"), ("ж", "zh"), ("Щ", "Shch"), ("ώ", "o")),
        *(("の", "no"), ("고", "go"), ("न", "na"), ("猫", "U+732B"), ("😀", "U+1F600"), ("\ue000", "U+E000")),
    ],
)
def test_transliteration(char, latin):
    assert transliterate(char) == latin


def test_line_ends_and_control_characters_are_escapes():
    assert typeset("a\nb\x1b", 14)[0] == r"a\nb\x1b"
    sheet([[Image.new("RGB", (8, 8))]], row_names=["a\nb"], column_names=["\r"], title="\t")


def test_a_title_is_not_cut(monkeypatch):
    drawn = []
    original = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw,
        "text",
        lambda self, xy, text, **o: (drawn.append((xy, text)), original(self, xy, text, **o)),
    )
    title = "/home/user/a/very/long/path/without/spaces/to/" + "x" * 200 + ", guidance 1.5, top-k 100, seed 12345"
    image = sheet([[Image.new("RGB", (8, 8))]], title=title)
    assert "".join(text for _, text in drawn).replace(" ", "") == title.replace(" ", "")
    assert all(left + ImageFont.load_default(12).getlength(text) < image.width for (left, _), text in drawn)
    assert len({top for (_, top), _ in drawn}) == len(drawn) > 1


def test_a_long_row_name_takes_the_lines_it_has_room_for(monkeypatch):
    drawn = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, xy, text, **o: drawn.append(text))
    sheet([[Image.new("RGB", (64, 64))]], row_names=["words that do not fit into a single line of the sheet here"])
    assert len(drawn) > 1
    assert not any("…" in text for text in drawn)
    drawn.clear()
    sheet([[Image.new("RGB", (64, 64))]], row_names=["endless " * 100])
    assert drawn[-1].endswith("…")


@pytest.mark.parametrize("size", [1, 6, 64, 100, 256, 1024, 5000])
def test_pages_are_bounded(size):
    page = page_of(size)
    assert page.rows >= 1
    assert 1 <= page.columns <= 32
    image = sheet([[Image.new("RGB", (size, size))]] * min(page.rows, 150))
    assert image.height < max(9200, 1.2 * size)

import numpy as np
import pytest
import torch
from PIL import Image

from aimamba.data.sheets import sheet, to_float, to_pil, to_uint8


def colours(*names, size=(8, 8)):
    return [Image.new("RGB", size, name) for name in names]


def boxes(image, colour):
    """Bounding box (left, top, right, bottom) of a colour."""
    array = np.asarray(image)
    rows, columns = np.nonzero((array == colour).all(axis=2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


class TestTensors:
    def test_there_and_back_is_exact_for_every_byte(self):
        every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(2, 3, 1, 1)
        [image, _] = to_pil(to_uint8(to_float(every)))
        np.testing.assert_array_equal(np.asarray(image)[..., 0].ravel(), np.arange(256))

    def test_range(self):
        floats = to_float(torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 1, 2).repeat(1, 3, 1, 1))
        assert floats.dtype == torch.float32
        assert floats[0, 0, 0].tolist() == [-1.0, 1.0]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_rounding_is_llamagens(self, dtype):
        x = torch.linspace(-1.5, 1.5, 300).to(dtype).reshape(1, 3, 10, 10).requires_grad_()
        expected = torch.clamp(127.5 * x.detach().float() + 128.0, 0, 255).to(torch.uint8)
        [image] = to_pil(to_uint8(x))
        np.testing.assert_array_equal(np.asarray(image), expected[0].permute(1, 2, 0).numpy())

    def test_channels_rows_and_columns(self):
        x = torch.full((1, 3, 2, 4), -1.0)
        x[0, 2, 1, 3] = 1.0
        [image] = to_pil(to_uint8(x))
        assert image.size == (4, 2)
        assert image.getpixel((3, 1)) == (0, 0, 255)


class TestSheet:
    def test_small_images_are_magnified_by_whole_factors(self):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 200, (24, 24, 3), dtype=np.uint8))
        drawn = np.asarray(sheet([[image]]))
        expected = np.asarray(image).repeat(3, axis=0).repeat(3, axis=1)
        margin = (drawn.shape[0] - 72) // 2
        np.testing.assert_array_equal(drawn[margin:-margin, margin:-margin], expected)
        assert (np.delete(drawn.reshape(-1, 3), np.nonzero((drawn < 200).all(2).ravel())[0], 0) == 255).all()

    def test_large_ones_stay_as_they_are(self):
        image = sheet([colours("red", size=(100, 80))])
        left, top, right, bottom = boxes(image, (255, 0, 0))
        assert (right - left, bottom - top) == (100, 80)

    def test_the_grid_is_even(self):
        image = sheet([colours("red", "lime"), colours("blue", "black")])
        red, lime, blue, black = (boxes(image, c) for c in [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)])
        assert red[1] == lime[1]
        assert red[0] == blue[0]
        assert lime[0] == black[0]
        assert lime[0] - red[2] == blue[1] - red[3] > 0
        assert red[0] == red[1] == image.width - black[2] == image.height - black[3]

    def test_rows_may_differ_in_length_and_images_in_size_and_mode(self):
        grey = Image.new("L", (64, 32), 0)
        image = sheet([[*colours("red"), grey], colours("blue")])
        black, red = boxes(image, (0, 0, 0)), boxes(image, (255, 0, 0))
        assert black[1] - red[1] == red[3] - black[3] == 16  # in the middle of its cell

    def test_names_and_title_take_room_but_touch_no_image(self):
        rows = [colours("red", "lime"), colours("blue", "lime")]
        plain = sheet(rows)
        named = sheet(rows, row_names=["cats", "dogs"], column_names=["one", "two"], title="a title")
        assert named.width > plain.width
        assert named.height > plain.height
        for colour in [(255, 0, 0), (0, 0, 255)]:
            left, top, right, bottom = boxes(named, colour)
            assert (right - left, bottom - top) == (64, 64)
            beside = np.asarray(named)[top:bottom, :left]
            inked = np.nonzero((beside < 200).all(2))
            assert len(inked[0]) > 20
            assert abs((inked[0].min() + inked[0].max()) / 2 - 32) < 5  # the name stands in the middle
        assert (np.asarray(named)[: boxes(named, (255, 0, 0))[1]] < 160).any()

    def test_long_column_names_get_larger_images(self):
        image = sheet([colours("red", "lime")], column_names=["original", "reconstruction"])
        left, top, right, bottom = boxes(image, (255, 0, 0))
        assert right - left == bottom - top
        assert right - left > 64

    def test_text_that_does_not_fit_is_cut(self):
        endless = "supercalifragilistic " * 20
        image = sheet([colours("red", "lime")], row_names=[endless], column_names=[endless, "b"], title=endless)
        assert image.width < 900
        margin = np.asarray(image)[:, :8]
        assert (margin == 255).all()
        assert (np.asarray(image)[:, -8:] == 255).all()

    def test_a_text_of_any_length_takes_a_bounded_sheet(self):
        images = [[Image.new("RGB", (8, 8))]]
        sizes = [sheet(images, row_names=["9" * length], title="9" * length).size for length in (5_000, 20_000)]
        assert sizes[0] == sizes[1]
        assert max(sizes[0]) < 1_000

    @pytest.mark.parametrize(
        ("rows", "names", "match"),
        [
            ([], {}, "at least one image"),
            ([[]], {}, "at least one image"),
            ([colours("red")], {"row_names": ["a", "b"]}, "1 rows needs as many row_names, got 2"),
            ([colours("red", "red")], {"column_names": ["a"]}, "2 columns needs as many column_names, got 1"),
        ],
    )
    def test_what_is_refused(self, rows, names, match):
        with pytest.raises(ValueError, match=match):
            sheet(rows, **names)

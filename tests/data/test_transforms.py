import math
import random
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aimamba.data import transforms
from aimamba.data.files import open_image
from aimamba.data.transforms import center_crop, flip, moved, random_crop, resize, ten_crop, to_array, to_rgb
from aimamba.errors import DataError
from refusals import one_line_error


def noise(width, height, seed=0, channels=3):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def make_image(width, height, seed=0):
    return Image.fromarray(noise(width, height, seed))


def reopened(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    with Image.open(tmp_path / name) as opened:
        return to_rgb(opened)


def adm_center_crop(image, size):
    """guided-diffusion's center_crop_arr, as LlamaGen has it."""
    while min(*image.size) >= 2 * size:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.BOX)
    scale = size / min(*image.size)
    image = image.resize(tuple(round(x * scale) for x in image.size), resample=Image.BICUBIC)
    array = np.array(image)
    top = (array.shape[0] - size) // 2
    left = (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]


class TestToRgb:
    def test_rgb_stays_as_it_is_without_a_copy(self, tmp_path):
        """Of 13,000 x 13,000 pixels a copy is half a gigabyte. The numbers remain when the file is closed."""
        image = make_image(5, 4)
        assert to_rgb(image) is image
        np.testing.assert_array_equal(to_array(reopened(tmp_path, image, "rgb.png")), to_array(image))

    @pytest.mark.parametrize("fully", ["colour", "entry"])
    def test_transparent_palette_is_pasted_on_white(self, tmp_path, fully):
        image = Image.new("P", (4, 2))
        image.putpalette([200, 30, 40, 10, 20, 250, 0, 0, 0])
        image.putdata([0, 1, 0, 1, 1, 1, 0, 0])
        transparency = 1 if fully == "colour" else bytes([255, 0])
        converted = to_array(reopened(tmp_path, image, "p.png", transparency=transparency))
        red, white = [200, 30, 40], [255, 255, 255]
        assert converted.tolist() == [[red, white, red, white], [white, white, red, red]]

    def test_half_transparent_palette_entry(self, tmp_path):
        image = Image.new("P", (1, 1), 0)
        image.putpalette([0, 0, 0])
        [[value]] = to_array(reopened(tmp_path, image, "p.png", transparency=bytes([128])))
        assert value.tolist() == [127, 127, 127]

    def test_opaque_palette(self, tmp_path):
        image = Image.new("P", (2, 1))
        image.putpalette([1, 2, 3, 4, 5, 6])
        image.putdata([1, 0])
        assert to_array(reopened(tmp_path, image, "p.gif")).tolist() == [[[4, 5, 6], [1, 2, 3]]]

    def test_alpha_channel_is_pasted_on_white(self, tmp_path):
        rgba = Image.new("RGBA", (3, 1))
        rgba.putdata([(255, 0, 0, 255), (0, 255, 0, 0), (0, 0, 255, 51)])
        converted = to_array(reopened(tmp_path, rgba, "a.png"))
        assert converted.tolist() == [[[255, 0, 0], [255, 255, 255], [204, 204, 255]]]

    def test_grey_with_alpha(self, tmp_path):
        image = Image.new("LA", (2, 1))
        image.putdata([(10, 255), (10, 0)])
        assert to_array(reopened(tmp_path, image, "la.png")).tolist() == [[[10] * 3, [255] * 3]]

    def test_colour_key(self, tmp_path):
        image = Image.new("RGB", (2, 1))
        image.putdata([(9, 8, 7), (1, 2, 3)])
        converted = to_array(reopened(tmp_path, image, "key.png", transparency=(9, 8, 7)))
        assert converted.tolist() == [[[255] * 3, [1, 2, 3]]]

    def test_grey_and_bitmap(self, tmp_path):
        grey = Image.fromarray(noise(3, 2, channels=1))
        converted = to_array(reopened(tmp_path, grey, "grey.png"))
        np.testing.assert_array_equal(converted, np.repeat(np.asarray(grey)[..., None], 3, axis=2))
        bitmap = Image.new("1", (2, 1))
        bitmap.putdata([0, 255])
        assert to_array(reopened(tmp_path, bitmap, "one.png")).tolist() == [[[0] * 3, [255] * 3]]

    @pytest.mark.parametrize("suffix", ["png", "tiff"])
    def test_sixteen_bit_grey_keeps_its_high_byte(self, tmp_path, suffix):
        values = np.array([[0, 255, 256, 0x7FFF, 0x8000, 65535]], np.uint16)
        converted = to_array(reopened(tmp_path, Image.fromarray(values), f"deep.{suffix}"))
        assert converted[0, :, 0].tolist() == [0, 0, 1, 127, 128, 255]
        assert (converted == converted[..., :1]).all()

    def test_cmyk_jpeg(self, tmp_path):
        colours = Image.new("RGB", (32, 16), (200, 60, 30))
        colours.paste((20, 120, 220), (16, 0, 32, 16))
        converted = to_array(reopened(tmp_path, colours.convert("CMYK"), "c.jpg", quality=100))
        assert np.abs(converted.astype(int) - to_array(colours)).max() <= 4

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
    def test_every_exif_orientation_comes_out_upright(self, tmp_path, orientation, suffix):
        upright = Image.fromarray(noise(2, 3).repeat(16, axis=0).repeat(16, axis=1))
        undo = {
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_90,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270,
        }
        stored = upright.transpose(undo[orientation]) if orientation in undo else upright
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(suffix, {})
        straight = reopened(tmp_path, upright, f"straight.{suffix}", **options)
        turned = reopened(tmp_path, stored, f"turned.{suffix}", exif=exif, **options)
        assert turned.size == upright.size
        # JPEG rounds a block and its mirror image not quite alike; a wrong turn would be off by a hundred.
        difference = np.abs(to_array(turned).astype(int) - to_array(straight))
        assert difference.max() <= (2 if suffix == "jpg" else 0)

    def test_damaged_exif_spoils_nothing(self, tmp_path):
        image = make_image(16, 16)
        image.save(tmp_path / "odd.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff broken")
        with Image.open(tmp_path / "odd.png") as opened:
            opened.getexif = lambda: (_ for _ in ()).throw(SyntaxError("not a TIFF file"))
            np.testing.assert_array_equal(to_array(to_rgb(opened)), to_array(image))


class TestCrops:
    @pytest.mark.parametrize(
        ("width", "height", "size"),
        [(300, 200, 32), (64, 64, 32), (63, 90, 32), (40, 33, 32), (20, 31, 32), (32, 32, 32)],
    )
    def test_center_crop_is_adms(self, width, height, size):
        image = make_image(width, height)
        np.testing.assert_array_equal(to_array(center_crop(image, size)), adm_center_crop(image, size))

    @settings(deadline=None, max_examples=40)
    @given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 50))
    def test_resize_gives_the_shorter_side_and_keeps_proportions(self, width, height, size):
        resized = resize(Image.new("RGB", (width, height)), size)
        assert min(resized.size) == size
        # Halving drops odd pixels, so the proportions may move by a little.
        exact = max(width, height) / min(width, height) * size
        assert abs(max(resized.size) - exact) <= 0.5 + exact * 2 / size

    @pytest.mark.parametrize("upright", [False, True])
    def test_of_a_very_long_image_only_the_middle_is_resized(self, monkeypatch, upright):
        strip = np.full((10, 100_000, 3), 255, np.uint8)
        strip[:, 49_980:50_020] = 0
        image, given, plain = Image.fromarray(strip.swapaxes(0, 1) if upright else strip), [], transforms.resize
        monkeypatch.setattr(transforms, "resize", lambda image, size: given.append(image.size) or plain(image, size))
        assert to_array(center_crop(image, 8)).max() == 0, "the middle"
        assert random_crop(image, 8, np.random.default_rng(0)).size == (8, 8)
        assert {max(size) for size in given} == {640}

    def test_random_crop_is_adms_with_the_same_draws(self):
        image = make_image(150, 100)
        for seed in range(10):
            rng = np.random.default_rng(seed)
            cropped = to_array(random_crop(image, 24, rng))
            again = np.random.default_rng(seed)
            shorter = int(again.integers(24, math.ceil(24 / 0.8), endpoint=True))
            scaled = resize(image, shorter)
            top = int(again.integers(0, scaled.height - 24 + 1))
            left = int(again.integers(0, scaled.width - 24 + 1))
            np.testing.assert_array_equal(cropped, np.asarray(scaled)[top : top + 24, left : left + 24])

    def test_random_crop_reaches_both_ends(self):
        # A ramp from black to white: the span of a crop says how much of the image it shows.
        ramp = Image.fromarray(np.repeat(np.linspace(0, 255, 200).astype(np.uint8)[None, :, None], 3, 2).repeat(200, 0))
        rng = np.random.default_rng(0)
        spans = []
        for _ in range(200):
            row = np.asarray(random_crop(ramp, 40, rng))[0, :, 0].astype(int)
            spans.append((row[-1] - row[0]) / 255)
        assert 0.76 < min(spans) < 0.82
        assert max(spans) > 0.97

    def test_random_crop_never_touches_the_global_generators(self):
        random.seed(0)
        np.random.seed(0)
        before = random.getstate(), np.random.get_state()[1].tolist()
        random_crop(make_image(60, 50), 32, np.random.default_rng(0))
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before

    def test_flip_mirrors_columns(self):
        image = make_image(7, 5)
        np.testing.assert_array_equal(to_array(flip(image)), to_array(image)[:, ::-1])

    def test_ten_crop_has_the_places_and_order_of_torchvision(self):
        image = make_image(90, 70)
        crops = [to_array(crop) for crop in ten_crop(image, 40, crop_range=1.1)]
        whole = to_array(center_crop(image, 44))
        for half, array in enumerate([whole, whole[:, ::-1]]):
            places = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]  # rows and columns
            for place, (top, left) in enumerate(places):
                np.testing.assert_array_equal(crops[5 * half + place], array[top : top + 40, left : left + 40])

    def test_ten_crop_rounds_an_odd_margin_like_torchvision(self):
        # 281 - 256 = 25, and round(12.5) is 12.
        crops = ten_crop(make_image(300, 300), 256, crop_range=1.1)
        whole = to_array(center_crop(make_image(300, 300), 281))
        np.testing.assert_array_equal(to_array(crops[4]), whole[12:268, 12:268])


def test_moved_images_show_the_same_a_little_elsewhere():
    image = np.full((64, 64, 3), 255, np.uint8)
    image[24:40, 24:40] = 0
    for seed in range(30):
        found = moved(image, np.random.default_rng(seed))
        assert (found.shape, found.dtype) == ((64, 64, 3), np.uint8)
        assert np.array_equal(found, moved(image, np.random.default_rng(seed)))
        rows, columns = np.nonzero(found[..., 0] < 128)
        for places in (rows, columns):
            assert 13 <= np.ptp(places) + 1 <= 19  # 16, scaled by 0.9 to 1.1
            assert abs(places.mean() - 31.5) <= 5  # moved by a sixteenth, and that scaled
        assert (found[[0, -1]] == 255).all()  # the edges are repeated
    assert not np.array_equal(moved(image, np.random.default_rng(0)), moved(image, np.random.default_rng(1)))


def test_to_array_is_a_writable_copy():
    image = make_image(3, 2)
    array = to_array(image)
    array[:] = 0
    assert to_array(image).any()
    assert array.shape == (2, 3, 3)


def test_to_array_refuses_other_modes():
    with pytest.raises(ValueError, match=r"'L'.*to_rgb"):
        to_array(Image.new("L", (2, 2)))


class TestBitDepth:
    """Samples are scaled by the range in the header; without one, an image that would be black is refused."""

    ramp = np.linspace(0, 1, 256).reshape(16, 16)

    def grey(self, path):
        return to_array(open_image(path))[..., 0]

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (ramp.astype(np.float32), r"32-bit grey \(mode F\) with values 0 to 1: .* which value is white"),
            ((ramp * 255).astype(np.int32), r"32-bit grey \(mode I\) with values 0 to 255: .* which value is white"),
            ((ramp * np.nan).astype(np.float32), "must be finite"),
            ((ramp * 255).astype(np.uint16), r"16-bit grey \(mode I;16\) with values 0 to 255: almost black"),
            ((ramp * 4095).astype(np.uint16), "values 0 to 4095: almost black"),
        ],
    )
    def test_an_unknown_range_is_an_error(self, tmp_path, values, message):
        Image.fromarray(values).save(tmp_path / "a.tif")
        with one_line_error(DataError, match=message) as caught:
            open_image(tmp_path / "a.tif")
        assert "a.tif" in str(caught.value)

    @pytest.mark.parametrize(
        ("dtype", "low", "high"), [(np.float32, 0, 1), (np.float32, -1, 1), (np.int32, 0, 4095), (np.int32, -9, 99)]
    )
    def test_a_tiffs_range_is_scaled_to_eight_bits(self, tmp_path, dtype, low, high):
        values = (low + (high - low) * self.ramp).astype(dtype)
        tags = {340: float(low), 341: float(high)}
        Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo=tags)
        expected = np.rint((values.astype(np.float64) - low) / (high - low) * 255)
        np.testing.assert_array_equal(self.grey(tmp_path / "a.tif"), expected)

    def test_a_tiffs_range_that_its_samples_leave_is_an_error(self, tmp_path):
        Image.fromarray(self.ramp.astype(np.float32)).save(tmp_path / "a.tif", tiffinfo={340: 0.0, 341: 0.5})
        with pytest.raises(DataError, match=r"outside the range in its header, 0 to 0\.5"):
            open_image(tmp_path / "a.tif")

    def test_twelve_bits_in_a_tiff_of_sixteen(self, tmp_path):
        Image.fromarray((self.ramp * 4095).astype(np.uint16)).save(tmp_path / "a.tif", tiffinfo={281: 4095})
        assert (self.grey(tmp_path / "a.tif").min(), self.grey(tmp_path / "a.tif").max()) == (0, 255)

    @pytest.mark.parametrize("bits", [8, 10, 12])
    def test_few_bits_in_a_png_of_sixteen(self, tmp_path, bits):
        path = tmp_path / "a.png"
        Image.fromarray((self.ramp * (2**bits - 1)).astype(np.uint16)).save(path)
        with pytest.raises(DataError, match="almost black"):
            open_image(path)
        with_chunk(path, b"sBIT", bytes([bits]))
        assert (self.grey(path).min(), self.grey(path).max()) == (0, 255)

    def test_a_dark_png_that_uses_all_bits(self, tmp_path):
        path = tmp_path / "a.png"
        Image.fromarray((self.ramp * 1000).astype(np.uint16)).save(path)
        with_chunk(path, b"sBIT", bytes([16]))
        assert self.grey(path).max() == 1000 >> 8
        Image.new("I;16", (4, 4)).save(path)
        assert self.grey(path).max() == 0, "black is black in any range"

    @pytest.mark.parametrize("channels", [3, 4])
    @pytest.mark.parametrize("white", [255, 4095, 65535])
    def test_few_bits_in_colour_of_sixteen(self, tmp_path, white, channels):
        colours = (np.stack([self.ramp] * channels, axis=-1) * white).astype(">u2")
        write_png(tmp_path / "a.png", colours)
        if white == 65535:
            assert to_array(open_image(tmp_path / "a.png"))[..., :3].max() == 255
        else:
            with pytest.raises(DataError, match=r"16-bit colour .* almost black"):
                open_image(tmp_path / "a.png")


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(path, kind, content):
    """Put a chunk behind a PNG's header."""
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + chunk(kind, content) + whole[33:])


def write_png(path, colours):
    """Write 16-bit colour, which Pillow cannot write."""
    height, width, channels = colours.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in colours)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000)])
def test_a_line_is_not_enlarged_beyond_memory(size):
    with pytest.raises(DataError, match="too narrow to be enlarged to 256: it would have 3,932,160,000 pixels"):
        center_crop(Image.new("RGB", size), 256)
    assert center_crop(Image.new("RGB", (600, 1)), 64).size == (64, 64)

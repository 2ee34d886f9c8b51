"""Images and masks as people have them."""

import numpy as np
import pytest
import torch
from PIL import Image

from aimamba.data.sheets import to_float
from aimamba.errors import DataError
from aimamba.pipeline.images import read_images, read_masks, write_images
from refusals import one_line_error

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 6, 6), dtype=np.uint8))
ARRAYS = PIXELS.permute(0, 2, 3, 1).numpy()
PILS = [Image.fromarray(image) for image in ARRAYS]


@pytest.mark.parametrize(
    "images",
    [PILS, tuple(PILS), ARRAYS, list(ARRAYS), PIXELS, list(PIXELS), to_float(PIXELS), [PILS[0], PIXELS[1]]],
    ids=["pil", "tuple", "array", "arrays", "tensor", "tensors", "floats", "mixed"],
)
def test_all_kinds_of_images_are_the_same_pixels(images):
    assert torch.equal(read_images(images, 6), PIXELS)


@pytest.mark.parametrize("image", [PILS[0], ARRAYS[0], PIXELS[0], to_float(PIXELS)[0]], ids=type)
def test_a_single_image_is_a_batch_of_one(image):
    assert torch.equal(read_images(image, 6), PIXELS[:1])


def test_other_modes_and_grey():
    grey = Image.fromarray(ARRAYS[0][..., 0])
    assert torch.equal(read_images(grey, 6), PIXELS[:1, :1].expand(-1, 3, -1, -1))
    assert torch.equal(read_images(ARRAYS[0][..., 0], 6), PIXELS[:1, :1].expand(-1, 3, -1, -1))
    clear = Image.new("RGBA", (6, 6), (10, 20, 30, 0))
    assert read_images(clear, 6).unique().tolist() == [255]


def test_another_size_is_cropped_or_stretched_when_asked():
    wide = np.zeros((6, 12, 3), np.uint8)
    wide[:, 3:9] = 200  # the middle square
    assert read_images(wide, 6, "crop").unique().tolist() == [200]
    stretched = read_images(wide, 6, "stretch")
    assert stretched.shape == (1, 3, 6, 6)
    assert stretched.min() < 50
    assert read_images(np.full((3, 3, 3), 9, np.uint8), 6, "crop").unique().tolist() == [9]


@pytest.mark.parametrize(
    ("images", "fit", "named"),
    [
        ([], "exact", "no images given"),
        (np.zeros((6, 12, 3), np.uint8), "exact", "image 0 has 12 x 6 pixels, and the model's have 6 x 6"),
        (np.zeros((6, 6, 3), np.uint8), "cover", "fit must be one of exact, crop, stretch, got 'cover'"),
        (np.zeros((6, 6, 3)), "exact", "must be of 8 bits (uint8), got float64"),
        (np.zeros((6, 6, 4), np.uint8), "exact", "(H, W, 3) or (B, H, W, 3), got (6, 6, 4)"),
        (np.zeros((0, 6, 3), np.uint8), "exact", "images of shape (0, 6, 3) have no pixels"),
        (torch.zeros(6, 6, 3, dtype=torch.uint8), "exact", "(3, H, W) or (B, 3, H, W), got (6, 6, 3)"),
        (torch.zeros(3, 6, 6, dtype=torch.int64), "exact", "got torch.int64"),
        (torch.rand(3, 6, 6), "exact", "these look like [0, 1]"),
        (255 * torch.rand(3, 6, 6), "exact", "must be in [-1, 1]"),
        (torch.full((3, 6, 6), torch.nan), "exact", "must be in [-1, 1], got nan"),
        ("cat.png", "exact", "expected a PIL image"),
    ],
)
def test_what_is_no_image_is_refused(images, fit, named):
    with one_line_error(DataError) as caught:
        read_images(images, 6, fit)
    assert named in str(caught.value)


def test_images_go_out_as_asked():
    assert [image.tobytes() for image in write_images(PIXELS)] == [image.tobytes() for image in PILS]
    assert np.array_equal(write_images(PIXELS, "numpy"), ARRAYS)
    assert torch.equal(write_images(PIXELS, "tensor"), PIXELS)
    with one_line_error(DataError, match="output_type must be one of pil, numpy, tensor, np, pt, got 'latent'"):
        write_images(PIXELS, "latent")


TOKENS = torch.tensor([[0, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.bool)
MASK = TOKENS.repeat_interleave(2, 0).repeat_interleave(2, 1)  # in pixels


@pytest.mark.parametrize(
    "mask",
    [
        MASK,
        MASK.numpy(),
        MASK.int(),
        MASK.float(),
        MASK.to(torch.uint8) * 255,
        Image.fromarray(MASK.numpy()),
        Image.fromarray((MASK.numpy() * 200).astype(np.uint8)),
        Image.fromarray((MASK.numpy() * 200).astype(np.uint8)).convert("RGB"),
        TOKENS,
        TOKENS.flatten(),
        TOKENS[None].expand(2, -1, -1),
        [TOKENS, MASK],
    ],
)
def test_all_kinds_of_masks_are_the_same_tokens(mask):
    assert read_masks(mask, 2, 6, 3).tolist() == [TOKENS.flatten().tolist()] * 2


def test_one_pixel_masks_its_token():
    mask = np.zeros((6, 6), bool)
    mask[3, 1] = True
    assert read_masks(mask, 1, 6, 3).nonzero().tolist() == [[0, 3]]


def test_pixels_and_tokens_are_told_apart_where_an_image_has_as_many_tokens_as_rows():
    """As avatars-64: 64 pixels a side, 64 tokens."""
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[:8, 8:16] = True
    assert read_masks(mask, 1, 64, 8).nonzero().tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("mask", "named"),
    [
        (torch.zeros(6, 6), "covers no token"),
        (torch.ones(5, 5), r"pixels (6, 6) or of tokens (3, 3), got (5, 5)"),
        ([TOKENS] * 3, "got 3 masks for 2 images"),
        (TOKENS[None].expand(3, -1, -1), "got 3 masks for 2 images"),
        (torch.full((6, 6), -1.0), "must be booleans"),
        (torch.full((6, 6), torch.nan), "must be booleans"),
        (Image.new("RGBA", (6, 6)), "without transparency"),
        ("mask.png", "got str"),
    ],
)
def test_what_is_no_mask_is_refused(mask, named):
    with one_line_error(DataError) as caught:
        read_masks(mask, 2, 6, 3)
    assert named in str(caught.value)

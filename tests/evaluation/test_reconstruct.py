"""Reconstructions of single images; ``tests/cli/test_cli_reconstruct.py`` compares their pixels."""

import numpy as np
import pytest
from PIL import Image

from aimamba.data.transforms import center_crop, to_array
from aimamba.errors import ConfigError, DataError
from aimamba.evaluation.reconstruct import reconstruct
from aimamba.evaluation.sources import open_source


def test_images_of_several_sizes_come_at_one_size(make_vq, folder):
    names = [str(folder / "cats" / "0.png"), "avatars:planets:held-out:1", "avatars-16:thumbs:held-out:1"]
    small = list(reconstruct(make_vq(), names[:1] + names[2:], default_size=16))
    assert [found.name for found in small] == ["0.png", "thumbs-0"]
    assert [found.original.shape for found in small] == [(8, 8, 3)] * 2
    avatar = open_source(names[2]).image(0)
    assert np.array_equal(small[1].original, to_array(center_crop(Image.fromarray(avatar), 8)))
    large = list(reconstruct(make_vq(), names[1:], default_size=16))
    assert np.array_equal(large[1].original, avatar)
    for found in (*small, *large):
        assert found.reconstruction.shape == found.original.shape
        assert found.reconstruction.dtype == np.uint8
        error = np.square(found.original.astype(float) - found.reconstruction).mean()
        assert found.psnr == pytest.approx(10 * np.log10(255**2 / error))


def test_sizes_are_checked_before_the_first_image(make_vq, folder):
    with pytest.raises(DataError, match="give --size 8 or less"):
        reconstruct(make_vq(), [str(folder)], size=16)
    with pytest.raises(ConfigError, match="--size must be a multiple of"):
        reconstruct(make_vq(), [str(folder)], size=7)

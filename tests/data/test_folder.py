import os
import pickle
import warnings

import numpy as np
import pytest
from PIL import Image

from aimamba.data.files import find_images, open_image, read_sizes
from aimamba.data.folder import BrokenImageWarning, ImageFolder
from aimamba.data.transforms import center_crop, random_crop, to_array
from aimamba.errors import ConfigError, DataError
from refusals import one_line_error


def noise(seed, width=20, height=16):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write(root, names, width=20, height=16):
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        noise(seed, width, height).save(root / name)
    return root


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def pets(tmp_path):
    return write(tmp_path / "pets", [f"{pet}/{number}.png" for pet in ("cat", "dog") for number in range(6)])


def opened(root, **options):
    return ImageFolder(root, **{"size": 16, "split": "all"} | options)


class TestFinding:
    def test_classes_are_the_sorted_folders_and_files_are_found_at_any_depth(self, tmp_path):
        names = ["b/2.png", "b/deep/er/1.JPG", "b/10.webp", "a/x.bmp", "a/y.gif", "a/z.tiff", "a/w.jpeg"]
        write(tmp_path, names)
        folder = opened(tmp_path)
        assert folder.class_names == ("a", "b")
        assert folder.names == ("a/w.jpeg", "a/x.bmp", "a/y.gif", "a/z.tiff", "b/10.webp", "b/2.png", "b/deep/er/1.JPG")
        assert folder.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
        assert folder.labels.dtype == np.int64
        assert (len(folder), folder.size) == (7, 16)

    def test_hidden_and_other_files_are_ignored(self, pets):
        write(pets, ["cat/.hidden/1.png", ".git/1.png"])
        (pets / "cat" / "._0.png").write_bytes(b"resource fork")
        (pets / "cat" / "notes.txt").write_text("hello")
        (pets / "labels.csv").write_text("1,2")
        folder = opened(pets)
        assert len(folder) == 12
        assert folder.class_names == ("cat", "dog")

    def test_links_are_followed_but_not_in_a_circle(self, pets, tmp_path):
        write(tmp_path / "elsewhere", ["7.png"])
        os.symlink(tmp_path / "elsewhere", pets / "cat" / "more")
        os.symlink(pets / "cat", pets / "cat" / "again")
        assert [name for name in opened(pets).names if "/more/" in name] == ["cat/more/7.png"]
        assert len(opened(pets)) == 13

    def test_the_suffix_may_lie_about_the_format(self, pets):
        noise(1).save(pets / "cat" / "0.png", format="JPEG")
        assert opened(pets, strict=True).image(0).shape == (16, 16, 3)

    def test_classes_can_be_chosen_and_ordered(self, pets):
        write(pets, ["eel/1.png"])
        folder = opened(pets, classes=("eel", "cat"))
        assert folder.class_names == ("eel", "cat")
        assert folder.names[0] == "eel/1.png"
        assert folder.labels.tolist() == [0] + [1] * 6

    def test_per_class_is_a_fixed_choice(self, pets):
        few = opened(pets, per_class=2)
        assert np.bincount(few.labels).tolist() == [2, 2]
        assert set(few.names) < set(opened(pets, per_class=3).names)

    def test_train_and_held_out_are_disjoint_and_complete(self, pets):
        train, held_out = opened(pets, split="train"), opened(pets, split="held-out")
        assert len(held_out) >= 1
        assert sorted(train.names + held_out.names) == sorted(opened(pets).names)
        assert train.class_names == held_out.class_names

    def test_it_can_be_sent_to_another_process(self, pets):
        folder = opened(pets)
        copy = pickle.loads(pickle.dumps(folder))
        np.testing.assert_array_equal(copy.image(3), folder.image(3))


class TestViews:
    def test_without_a_generator_the_view_is_the_centre(self, pets):
        folder = opened(pets, size=8, crop="random", flip=True)
        expected = to_array(center_crop(noise(0), 8))
        np.testing.assert_array_equal(folder.image(0), expected)
        np.testing.assert_array_equal(folder.image(0, None), expected)

    def test_with_a_generator_it_is_what_that_draws(self, pets):
        folder = opened(pets, size=8, crop="random")
        expected = to_array(random_crop(noise(0), 8, np.random.default_rng(5)))
        np.testing.assert_array_equal(folder.image(0, np.random.default_rng(5)), expected)

    def test_half_of_the_views_are_mirrored_where_asked(self, pets):
        folder = opened(pets, flip=True)
        rng = np.random.default_rng(0)
        centre = folder.image(0)
        views = [folder.image(0, rng) for _ in range(100)]
        mirrored = [np.array_equal(view, centre[:, ::-1]) for view in views]
        assert all(flipped or np.array_equal(view, centre) for view, flipped in zip(views, mirrored, strict=True))
        assert 30 < sum(mirrored) < 70

    def test_no_view_is_mirrored_otherwise(self, pets):
        folder = opened(pets)
        rng = np.random.default_rng(0)
        assert all(np.array_equal(folder.image(0, rng), folder.image(0)) for _ in range(10))

    @pytest.mark.parametrize("index", [-1, 12])
    def test_an_index_out_of_range(self, pets, index):
        with pytest.raises(IndexError, match="of 12"):
            opened(pets).image(index)


class TestBrokenFiles:
    def test_an_empty_file_is_named_and_left_out(self, pets):
        (pets / "cat" / "3.png").write_bytes(b"")
        with pytest.warns(BrokenImageWarning, match=r"cat/3\.png: the file is empty \(0 bytes\); it is skipped"):
            folder = opened(pets)
        assert len(folder) == 11
        assert "cat/3.png" not in folder.names
        assert folder.labels.tolist() == [0] * 5 + [1] * 6

    def test_a_file_that_is_no_image(self, pets):
        (pets / "dog" / "0.png").write_text("<html>404</html>")
        with pytest.warns(BrokenImageWarning, match=r"dog/0\.png: this is not an image in a known format"):
            assert len(opened(pets)) == 11

    def test_a_link_to_nowhere(self, pets):
        os.symlink(pets / "gone.png", pets / "dog" / "x.png")
        with pytest.warns(BrokenImageWarning, match=r"dog/x\.png: no such file"):
            opened(pets)

    @pytest.mark.parametrize("suffix", ["jpg", "png"])
    def test_a_truncated_file_is_replaced_by_the_next_of_its_class(self, tmp_path, suffix):
        names = [f"{pet}/{number}.{suffix}" for pet in ("cat", "dog") for number in range(3)]
        write(tmp_path, names, 64, 64)
        truncate(tmp_path / f"cat/0.{suffix}")
        truncate(tmp_path / f"cat/1.{suffix}")
        truncate(tmp_path / f"dog/2.{suffix}")
        folder = opened(tmp_path, size=32)
        with pytest.warns(BrokenImageWarning, match=r"cat/[01]\.\w+: .*; it is skipped") as seen:
            first = folder.image(0)
        assert len(seen) == 2
        np.testing.assert_array_equal(first, folder.image(2))
        with pytest.warns(BrokenImageWarning, match="dog/2"):
            np.testing.assert_array_equal(folder.image(5), folder.image(3))  # round to the first of the class
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # each file is named once
            np.testing.assert_array_equal(folder.image(1), first)
        with pytest.warns(BrokenImageWarning, match="cat/1"):  # and does not depend on what was read before
            np.testing.assert_array_equal(opened(tmp_path, size=32).image(1), first)

    def test_a_class_of_which_nothing_can_be_read(self, tmp_path):
        write(tmp_path, ["cat/0.png", "dog/0.png"], 64, 64)
        truncate(tmp_path / "cat/0.png")
        with (
            pytest.warns(BrokenImageWarning),
            pytest.raises(DataError, match="cat: all images of this class are broken"),
        ):
            opened(tmp_path).image(0)

    def test_a_split_of_which_nothing_can_be_read(self, tmp_path):
        write(tmp_path, ["cat/0.png"])
        (tmp_path / "cat/0.png").write_bytes(b"")
        with (
            pytest.warns(BrokenImageWarning),
            pytest.raises(DataError, match="all 1 images of the split are broken"),
        ):
            opened(tmp_path)

    def test_strict_refuses_the_first_when_opened_and_when_decoded(self, pets):
        truncate(pets / "cat" / "2.png")
        folder = opened(pets, strict=True)
        with pytest.raises(DataError, match=r"cat/2\.png: .*leave out strict"):
            folder.image(2)
        (pets / "cat" / "1.png").write_bytes(b"")
        with pytest.raises(DataError, match=r"cat/1\.png: the file is empty.*leave out strict"):
            opened(pets, strict=True)

    def test_too_many_are_refused(self, pets):
        for number in range(3):
            (pets / "cat" / f"{number}.png").write_bytes(b"")
        with (
            pytest.warns(BrokenImageWarning),
            pytest.raises(DataError, match=r"cat/2\.png: .* 3 broken images where 2 are allowed"),
        ):
            opened(pets, max_broken=2)

    def test_those_found_when_opened_and_when_decoded_count_together(self, pets):
        (pets / "cat" / "0.png").write_bytes(b"")
        truncate(pets / "cat" / "1.png")
        with pytest.warns(BrokenImageWarning):
            folder = opened(pets, max_broken=1)
        with pytest.raises(DataError, match="2 broken images where 1 are allowed"):
            folder.image(0)

    def test_by_default_ten_may_be_broken(self, tmp_path):
        root = write(tmp_path, [f"cat/{number}.png" for number in range(20)])
        for number in range(10):
            (root / f"cat/{number}.png").write_bytes(b"")
        with pytest.warns(BrokenImageWarning):
            assert len(opened(root)) == 10
        (root / "cat/10.png").write_bytes(b"")
        with pytest.warns(BrokenImageWarning), pytest.raises(DataError, match="where 10 are allowed"):
            opened(root)


class TestRefusals:
    def refused(self, match, root, **options):
        with one_line_error(DataError, match=match):
            opened(root, **options)

    def test_a_missing_folder_is_named_with_its_neighbours(self, pets):
        self.refused(r"petz: there is no such folder \(did you mean 'pets'\?\)", pets.parent / "petz")
        self.refused("there is no such folder", pets / "not" / "here")

    def test_a_file(self, pets):
        self.refused("this is a file", pets / "cat" / "0.png")

    def test_an_empty_folder(self, tmp_path):
        self.refused("the folder is empty", tmp_path)

    def test_images_without_class_folders(self, tmp_path):
        self.refused(r"2 images but no sub-folders.*e\.g\. .*cats/a\.png", write(tmp_path, ["a.png", "b.png"]))

    def test_an_empty_class(self, pets):
        (pets / "eel").mkdir()
        self.refused("eel: this class folder holds no images", pets)
        assert len(opened(pets, classes=["cat", "dog"])) == 12

    def test_unknown_and_doubled_classes(self, pets):
        self.refused(r"no class 'cats' among its 2 folders \(did you mean 'cat'\?\)", pets, classes=["cats"])
        self.refused("the class 'cat' is named twice", pets, classes=["cat", "cat"])
        self.refused("no class is named", pets, classes=[])

    def test_an_image_too_small(self, pets):
        write(pets, ["dog/9.png"], width=30, height=12)
        self.refused(r"dog/9\.png: the image is 30 x 12 pixels, but .* at least 16: use a smaller size", pets)
        write(pets, ["dog/8.png"], width=15, height=15)
        self.refused(r"at least 16 \(and 1 more like it\)", pets)

    def test_a_small_image_can_be_enlarged(self, tmp_path):
        root = write(tmp_path, ["dog/9.png"], width=30, height=12)
        folder = opened(root, size=32, upscale=True, crop="random")
        assert folder.image(0).shape == (32, 32, 3)
        assert folder.image(0, np.random.default_rng(0)).shape == (32, 32, 3)

    def test_a_split_that_would_be_empty(self, tmp_path):
        root = write(tmp_path, ["dog/9.png"])
        self.refused("the held-out split holds no image, as the folder has only 1", root, split="held-out")
        assert len(opened(root, split="train")) == 1

    @pytest.mark.parametrize(
        "options",
        [{"size": 0}, {"per_class": 0}, {"held_out": 0.0}, {"held_out": 1.0}, {"max_broken": -1}],
    )
    def test_settings_out_of_range(self, pets, options):
        with pytest.raises(ConfigError, match=next(iter(options))):
            opened(pets, **options)


class TestFiles:
    def test_open_image_names_what_is_wrong(self, pets):
        assert open_image(pets / "cat" / "0.png").mode == "RGB"
        truncate(pets / "cat" / "0.png")
        for path in ("cat/0.png", "cat/none.png", "cat"):
            with pytest.raises(DataError, match=f"{path}: .+"):
                open_image(pets / path)

    def test_find_images(self, pets):
        assert find_images(pets / "cat") == [pets / "cat" / f"{number}.png" for number in range(6)]
        assert find_images(pets / "cat" / "0.png") == [pets / "cat" / "0.png"]
        assert len(find_images(pets)) == 12
        with pytest.raises(DataError, match=r"0\.pgn: there is no such file or folder .*'0\.png'"):
            find_images(pets / "cat" / "0.pgn")

    def test_of_several_frames_the_first_is_shown(self, tmp_path):
        frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
        for name in ("a.gif", "a.webp", "a.tiff", "a.jpg"):
            multiple = {"format": "MPO"} if name == "a.jpg" else {}
            frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **multiple)
            red, _, blue = to_array(open_image(tmp_path / name))[8, 8]
            assert red > 250
            assert blue < 5


@pytest.mark.parametrize("split", ["train", "all"])
def test_a_pipe_called_like_an_image_is_not_waited_for(pets, split):
    os.mkfifo(pets / "cat" / "z.png")
    with pytest.raises(DataError, match=r"z\.png: this is a pipe, socket or device, not a file: remove it"):
        open_image(pets / "cat" / "z.png")
    [fault] = read_sizes([pets / "cat" / "z.png"])
    assert "this is a pipe" in str(fault)
    with pytest.warns(BrokenImageWarning, match="this is a pipe"):
        assert "cat/z.png" not in opened(pets, split=split, held_out=0.01).names


def test_a_line_that_would_be_enlarged_is_passed_over(pets):
    Image.new("RGB", (60_000, 1)).save(pets / "cat" / "z.png")
    with pytest.warns(BrokenImageWarning, match=r"z\.png: the image is 60000 x 1 pixels, too narrow to be enlarged"):
        assert "cat/z.png" not in opened(pets, size=256, upscale=True).names

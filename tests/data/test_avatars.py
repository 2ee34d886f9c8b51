import hashlib
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

from aimamba.data import drawing
from aimamba.data.avatars import STYLES, Avatars
from aimamba.data.cache import load_images, store_images
from aimamba.data.drawing import DrawRequest, available_styles, draw, draw_all
from aimamba.errors import ConfigError, DataError
from aimamba.files import cache_folder

FAST = ("thumbs", "landscape")  # styles that are built in a moment


@pytest.fixture
def drawn(monkeypatch):
    """The orders that were drawn."""
    orders = []
    monkeypatch.setattr(drawing, "draw", lambda order: orders.append(order) or draw(order))
    return orders


@pytest.fixture
def make(tmp_path):
    def make(per_class=3, styles=FAST, **options):
        return Avatars(**{"size": 16, "cache_dir": tmp_path / "cache"} | options, per_class=per_class, styles=styles)

    return make


def all_images(images):
    return np.stack([images.image(index) for index in range(len(images))])


def digest(array):
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


class TestPixels:
    @pytest.mark.parametrize(
        ("style", "train", "held_out"),
        [
            ("thumbs", "07a3efbd6c7e1929", "a82b2c8da2e93b76"),
            ("landscape", "d73107961ecc03f6", "9a912250aa2052de"),
            ("voxel-bot", "877973df49246898", "27cd5815b6d62079"),
            ("planets", "c152db55a0515a62", "c90dfe09cf2c3425"),
        ],
    )
    def test_they_never_change(self, style, train, held_out):
        # Drawn on x86-64; they depend on the pinned versions of dicebear-core, dicebear-styles and resvg-py.
        first = next(draw(DrawRequest(style, "train", 0, 1, 32)))
        other = next(draw(DrawRequest(style, "held-out", 17, 18, 32)))
        assert (digest(first), digest(other)) == (train, held_out)

    def test_the_ground_is_white(self):
        image = next(draw(DrawRequest("pixel-art", "train", 0, 1, 32)))
        assert image[0, 0].tolist() == [255, 255, 255]
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 5

    @pytest.mark.parametrize("size", [8, 33, 128])
    def test_any_size(self, make, size):
        assert make(1, ("thumbs",), size=size).image(0).shape == (size, size, 3)

    def test_several_processes_draw_the_same(self, monkeypatch):
        orders = [DrawRequest("thumbs", "train", 1, 6, 16), DrawRequest("landscape", "held-out", 0, 3, 16)]
        here = list(draw_all(orders, processes=1))
        monkeypatch.setattr(drawing, "_WORTH_SHARING", 1)
        apart = list(draw_all(orders, processes=4))
        for one, other in zip(here, apart, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_what_another_process_fails_to_deliver_is_drawn_here(self, monkeypatch):
        monkeypatch.setattr(drawing, "_WORTH_SHARING", 1)
        monkeypatch.setattr(
            drawing, "_CHILD", "import sys; sys.stdout.buffer.write(bytes(16 * 16 * 3 + 5)); raise SystemExit(1)"
        )
        [images] = draw_all([DrawRequest("thumbs", "train", 0, 3, 16)], processes=2)
        pieces = [0, 1]  # first of each piece: what the failing child gave
        assert [not image.any() for image in images] == [index in pieces for index in range(3)]
        np.testing.assert_array_equal(images[2], next(draw(DrawRequest("thumbs", "train", 2, 3, 16))))

    def test_a_script_without_main_guard_can_draw(self, tmp_path):
        script = tmp_path / "first.py"
        script.write_text(
            "import sys\n"
            "from aimamba.data import Avatars, drawing\n"
            "drawing._WORTH_SHARING, drawing.usable_cores = 1, lambda: 2\n"
            "print(len(Avatars(8, per_class=4, styles=['thumbs'], cache_dir=sys.argv[1])))\n"
        )
        run = subprocess.run([sys.executable, script, tmp_path / "c"], capture_output=True, text=True, check=True)
        assert (run.stdout, run.stderr) == ("4\n", "")

    def test_progress_goes_to_stderr_only_where_asked(self, make, capfd):
        make()
        assert capfd.readouterr() == ("", "")
        make(5, progress=True)
        out, error = capfd.readouterr()
        assert out == ""
        assert "drawing avatars" in error
        assert "4/4" in error
        make(5, progress=True)  # nothing to draw, nothing to show
        assert capfd.readouterr() == ("", "")


class TestClasses:
    def test_the_ten_styles_are_the_classes(self):
        assert len(STYLES) == 10
        assert STYLES[0] == "critters"
        assert set(STYLES) <= set(available_styles())
        assert len(available_styles()) == 61

    def test_order_labels_and_size(self, make):
        images = make(3)
        assert images.class_names == FAST
        assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert images.labels.dtype == np.int64
        assert (len(images), images.size) == (6, 16)
        np.testing.assert_array_equal(images.image(4), next(draw(DrawRequest("landscape", "train", 1, 2, 16))))

    def test_images_can_be_passed_over(self, make):
        every, later = make(per_class=5), make(per_class=2, skip=3)
        assert later.labels.tolist() == [0, 0, 1, 1]
        assert np.array_equal(all_images(later), all_images(every)[[3, 4, 8, 9]])
        with pytest.raises(ConfigError, match="skip must not be negative, got -1"):
            make(skip=-1)

    def test_train_and_held_out_have_other_images(self, make):
        train, held_out = all_images(make(20)), all_images(make(20, split="held-out"))
        assert not {image.tobytes() for image in train} & {image.tobytes() for image in held_out}

    def test_a_generator_is_ignored_without_flip(self, make):
        images = make()
        rng = np.random.default_rng(0)
        for index in range(6):
            np.testing.assert_array_equal(images.image(index, rng), images.image(index))
        assert rng.random() == np.random.default_rng(0).random()

    def test_flip_mirrors_about_half(self, make):
        images = make(flip=True)
        rng = np.random.default_rng(0)
        plain = images.image(0)
        views = [images.image(0, rng) for _ in range(100)]
        mirrored = [np.array_equal(view, plain[:, ::-1]) for view in views]
        assert all(flipped or np.array_equal(view, plain) for view, flipped in zip(views, mirrored, strict=True))
        assert 30 < sum(mirrored) < 70

    def test_an_image_belongs_to_the_caller(self, make):
        images = make()
        images.image(0)[:] = 7
        assert not (images.image(0) == 7).all()

    @pytest.mark.parametrize("index", [-1, 6])
    def test_an_index_out_of_range(self, make, index):
        with pytest.raises(IndexError, match="of 6"):
            make().image(index)

    @pytest.mark.parametrize(
        ("styles", "match"),
        [
            (("planet",), "no avatar style 'planet' among DiceBear's 61 .*'planets'"),
            ((), "no avatar style is named"),
            (("thumbs", "thumbs"), "'thumbs' is named twice"),
        ],
    )
    def test_styles_that_are_refused(self, make, styles, match):
        with pytest.raises(DataError, match=match):
            make(styles=styles)

    @pytest.mark.parametrize(
        "options",
        [{"size": 7}, {"size": 5000}, {"per_class": 0}, {"split": "all"}, {"per_class": 10**11}, {"skip": 2**63}],
    )
    def test_settings_out_of_range(self, make, options):
        with pytest.raises(ConfigError, match=next(iter(options))):
            make(**options)


class TestCache:
    def test_the_second_time_nothing_is_drawn(self, make, drawn):
        first = all_images(make())
        assert len(drawn) == 2
        np.testing.assert_array_equal(all_images(make()), first)
        np.testing.assert_array_equal(all_images(make(2)), first[[0, 1, 3, 4]])
        assert len(drawn) == 2
        assert all(isinstance(part, np.memmap) for part in make()._drawn)

    def test_a_file_for_each_style_size_and_split_names_the_versions(self, make, tmp_path):
        make(styles=("thumbs",))
        make(styles=("thumbs",), size=8)
        make(styles=("thumbs",), split="held-out")
        makers = "dicebear10.7.0-styles10.6.0-resvg0.5.0.npy"
        assert sorted(os.listdir(tmp_path / "cache")) == [
            f"thumbs-16px-held-out-{makers}",
            f"thumbs-16px-train-{makers}",
            f"thumbs-8px-train-{makers}",
        ]

    def test_more_images_extend_the_file(self, make, drawn):
        make(3)
        drawn.clear()
        longer = all_images(make(5))
        assert [(order.first, order.last) for order in drawn] == [(3, 5), (3, 5)]
        np.testing.assert_array_equal(longer[:5], list(draw(DrawRequest("thumbs", "train", 0, 5, 16))))

    def test_other_styles_use_the_files_that_are_there(self, make, drawn):
        make(styles=("thumbs",))
        make(styles=("landscape", "thumbs"))
        assert [order.style for order in drawn] == ["thumbs", "landscape"]

    @pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "header", "other", "pickle", "archive"])
    def test_a_damaged_file_is_drawn_anew(self, make, tmp_path, drawn, damage):
        expected = all_images(make(styles=("thumbs",)))
        [path] = (tmp_path / "cache").iterdir()
        content = path.read_bytes()
        path.unlink()
        if damage == "other":
            np.save(path, np.zeros((9, 8, 8, 3), np.uint8))
        elif damage == "pickle":
            np.save(path, np.array([{}, {}], dtype=object), allow_pickle=True)
        elif damage == "archive":
            with open(path, "wb") as file:
                np.savez(file, a=np.zeros(3))
        else:
            damaged = {
                "truncated": content[: len(content) // 2],
                "empty": b"",
                "garbage": b"\0" * len(content),
                "header": content[:8] + b"\xff" * 60 + content[68:],
            }
            path.write_bytes(damaged[damage])
        np.testing.assert_array_equal(all_images(make(styles=("thumbs",))), expected)
        assert len(drawn) == 2
        assert len(load_images(path, 16)) == 3  # and the file is whole again

    def test_a_folder_that_cannot_be_written(self, make, tmp_path, drawn):
        expected = all_images(make())
        (tmp_path / "file").write_text("in the way")
        with pytest.warns(UserWarning, match="cannot keep the avatars here .*AIMAMBA_CACHE") as seen:
            images = make(cache_dir=tmp_path / "file" / "cache")
        assert len(seen) == 1
        np.testing.assert_array_equal(all_images(images), expected)
        assert len(drawn) == 4

    def test_a_disk_that_fills_up_leaves_no_draft(self, make, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.warns(UserWarning, match="No space left on device"):
            make()
        assert list((tmp_path / "cache").iterdir()) == []

    def test_a_file_that_became_longer_meanwhile_stays(self, tmp_path):
        path = tmp_path / "images.npy"
        longer = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
        store_images(path, longer)
        assert len(store_images(path, longer[:2])) == 5
        np.testing.assert_array_equal(load_images(path, 8), longer)

    def test_many_writers_at_once_never_show_half_a_file(self, tmp_path):
        path = tmp_path / "images.npy"
        images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
        seen, done = [], threading.Event()

        def read():
            while not done.is_set():
                stored = load_images(path, 8)
                if stored is not None:
                    seen.append(np.array_equal(stored, images[: len(stored)]))

        reader = threading.Thread(target=read)
        writers = [threading.Thread(target=store_images, args=(path, images[:n])) for n in range(1, 41)]
        for thread in (reader, *writers):
            thread.start()
        for thread in writers:
            thread.join()
        done.set()
        reader.join()
        assert all(seen)
        assert os.listdir(tmp_path) == ["images.npy"]

    def test_a_copy_for_another_process_holds_paths(self, make):
        images = make(100, styles=("thumbs",))
        sent = pickle.dumps(images)
        assert len(sent) < 5000 < images._drawn[0].nbytes
        np.testing.assert_array_equal(all_images(pickle.loads(sent)), all_images(images))

    def test_the_environment_chooses_the_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("AIMAMBA_CACHE", str(tmp_path / "mine"))
        Avatars(8, per_class=1, styles=("thumbs",))
        assert len(list((tmp_path / "mine" / "avatars").glob("thumbs-8px-*.npy"))) == 1

    @pytest.mark.parametrize(
        ("platform", "expected"),
        [("linux", ".cache/aimamba"), ("darwin", "Library/Caches/aimamba"), ("win32", "AppData/Local/aimamba")],
    )
    def test_the_folder_of_the_platform(self, monkeypatch, tmp_path, platform, expected):
        for name in ("AIMAMBA_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setattr(sys, "platform", platform)
        assert cache_folder() == tmp_path / expected


def test_reading_the_cache_imports_no_drawing_package(make, tmp_path):
    make()
    code = (
        "import sys; import aimamba.data; assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "from aimamba.data import Avatars\n"
        f"Avatars(16, per_class=3, styles={FAST}, cache_dir={str(tmp_path / 'cache')!r})\n"
        "assert not {'dicebear', 'resvg_py', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""Every door through which something from outside comes in: a name, good files to begin with, and how it is opened.

A door is opened as a command would do it. What comes in is refused by a typed error of one line, or works.
"""

import contextlib
import io
import json
import shutil
import warnings
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from tests.fuzz.caption_doors import add_caption_doors
from tests.fuzz.mutations import NUMBERS, damaged, words
from tests.photo_folders import write_photos

CORPUS = Path(__file__).parent / "corpus"

_RECIPE = """stage = "generator"
[data]
source = "photos"
size = 8
[model]
width = 16
num_blocks = 2
state_size = 4
head_width = 8
adaln = "group"
[fit]
steps = 2
batch_size = 4
lr = 1e-3
betas = [0.9, 0.95]
[task]
sheet_pictures = 1
"""


_WORK = (  # where the work of a command begins
    "train.fit.fit",
    "studies.run.run_study",
    "evaluation.run.evaluate",
    "evaluation.tokenizer.evaluate_tokenizer",
    "pipeline.Pipeline.prepare",
    "pipeline.Pipeline.generate",
    "data.shards.encode_splits",
    "data.avatars.Avatars.image",
    "data.avatars.render",
)
_FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "bmp": "BMP", "gif": "GIF", "tif": "TIFF"}


class Door(NamedTuple):
    """A way in.

    Attributes:
        name: For people; also the folder of its files in the corpus.
        inputs: What comes in.
        open: Opens it; what it returns does not matter.
    """

    name: str
    inputs: st.SearchStrategy[Any]
    open: Callable[[Any], object]


class ReachedError(Exception):
    """The arguments are good: here the work would begin."""


def make_doors(folder: Path) -> list[Door]:  # noqa: PLR0915 - a paragraph for each kind
    """Make the doors and the small good files that they need.

    Args:
        folder: An empty folder to work in, which becomes the current one.
    """
    from aimamba.data.class_names import find_class
    from aimamba.data.files import open_image
    from aimamba.data.image_files import ImageFiles
    from aimamba.data.npz import NpzImages
    from aimamba.data.png_text import read_png_text, write_png
    from aimamba.data.shards import open_codes
    from aimamba.data.spec import parse_spec
    from aimamba.data.transforms import center_crop
    from aimamba.generation import SamplingConfig
    from aimamba.generation.record import ModelRecord, SampleRecord, parse_record
    from aimamba.models import AiM, VQModel
    from aimamba.pipeline import Pipeline
    from aimamba.studies.results import Results
    from aimamba.train.checkpoint import read_checkpoint
    from aimamba.train.tracking import MetricsFile

    good = _Good(folder)
    made = []

    def file(name: str, path: Path, read: Callable[[], object], *others: bytes) -> None:
        """Add a door that is one file, or one of a folder. Its good content is what the file holds now."""
        before = path.read_bytes() if path.exists() else None
        seeds = [content for content in (before, *others) if content is not None] + in_corpus(name)

        def enter(content: bytes) -> None:
            path.write_bytes(content)
            try:
                read()
            finally:
                path.unlink()
                if before is not None:
                    path.write_bytes(before)

        made.append(Door(name, damaged(seeds), enter))

    pipeline, official = good.pipeline(), good.official()
    generator, tokenizer = pipeline / "generator", pipeline / "tokenizer"
    file("config-generator", generator / "config.json", lambda: AiM.from_pretrained(generator))
    file("config-tokenizer", tokenizer / "config.json", lambda: VQModel.from_pretrained(tokenizer))
    file("pipeline", pipeline / "pipeline.json", lambda: Pipeline.from_pretrained(pipeline, device="meta"))
    file("safetensors", generator / "model.safetensors", lambda: AiM.from_pretrained(generator))
    file("config-official", official / "config.json", lambda: AiM.from_pretrained(official))
    file("official", official / "model.safetensors", lambda: AiM.from_pretrained(official))
    weights = good.pickle(tokenizer)
    file("pt", weights, lambda: VQModel.from_pretrained(weights))
    resumed = good.checkpoint()
    file("checkpoint", resumed, lambda: read_checkpoint(resumed))

    sharded = good.sharded()
    for name in ("state.json", ".metadata", "rest.pt", "__0_0.distcp"):
        file(f"sharded-{name.strip('._').partition('.')[0]}", sharded / name, lambda: read_checkpoint(sharded))
    for name in (".metadata", "rest.pt", "__0_0.distcp"):  # as far as a signed change gets
        door = f"signed-{name.strip('._').partition('.')[0]}"
        file(door, sharded / name, lambda: (good.sign(sharded), read_checkpoint(sharded)))

    codes = good.codes()
    file("meta", codes / "meta.json", lambda: open_codes(codes))
    file("labels", codes / "labels.npy", lambda: open_codes(codes))
    file("shard", codes / "codes-00000.npy", lambda: open_codes(codes))
    both = good.code_splits()
    for name in ("train/sums.json", "train/meta.json", "held-out/meta.json", "held-out/labels.npy"):
        file(f"codes-{name.replace('/', '-').partition('.')[0]}", both / name, lambda: _take_codes(both))
    for number in (0, 1):  # without sums, so that a change gets as far as it can
        file(f"codes-shard-{number}", codes / f"codes-0000{number}.npy", lambda: _take_codes(codes))

    metrics = folder / "metrics.jsonl"
    metrics.write_text('{"step": 1, "split": "train", "loss": 2.5}\n{"step": 2, "split": "held-out", "bits": null}\n')
    file("metrics", metrics, lambda: MetricsFile(metrics, step=1).__exit__())
    results = folder / "results.json"
    guidance = {"budget": 2, "recipe": {"kind": "guidance", "variants": []}}
    Results.begin(results, "guidance", guidance).add("s-1", {"provenance": {}, "samples": [{"bits": 3.5}]})
    file("results", results, lambda: Results.begin(results, "guidance", guidance))
    recipe = folder / "recipe.toml"
    recipe.write_text(_RECIPE)
    file("recipe", recipe, lambda: _resolve(str(recipe), {}))

    npz = good.npz()
    file("npz", npz, lambda: _read_images(NpzImages(npz)))
    for kind, content in good.images().items():
        path = folder / f"image.{kind}"
        path.write_bytes(content)
        file(f"image-{kind}", path, lambda path=path: center_crop(open_image(path), 4))
    model = ModelRecord(model="m", fingerprint="0" * 64, dtype="float32", engine="plain", device="cpu", aimamba="0.2.0")
    record = SampleRecord(class_name="cats", label=1, sampling=SamplingConfig(seed=7), model=model)
    sample, settings = folder / "sample.png", folder / "sample.json"
    write_png(sample, Image.new("RGB", (4, 4)), record.to_text())
    file("sample", sample, lambda: parse_record(read_png_text(sample), sample))
    settings.write_text(record.to_text())
    file("sample-settings", settings, lambda: parse_record(settings.read_text(errors="replace"), settings))
    photo = folder / "photos" / "cats" / "0.png"
    file("folder", photo, lambda: _read_images(ImageFiles(folder / "photos", size=4)))
    add_caption_doors(file, folder)

    names = st.lists(words, max_size=6)
    made.append(Door("class-names", st.tuples(words, names), lambda given: find_class(*given, len(given[1]))))
    made.append(Door("saved-class-names", names, _save_names))
    made.append(Door("image-sets", _joined(":", "-", ","), parse_spec))
    keys = ["fit.steps", "fit.lr", "fit.betas", "data.size", "data.source", "model.width", "model.adaln", "task.ema"]
    key, value = st.one_of(st.sampled_from(keys), words), st.one_of(words, st.sampled_from(NUMBERS))
    made.append(Door("set", st.tuples(key, value), lambda given: _resolve(str(recipe), {given[0]: given[1]})))
    made.append(Door("arguments", _arguments(), _run))
    return made


def in_corpus(name: str) -> list[bytes]:
    """Return the files that are kept for a door."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


def _resolve(recipe: str, overrides: dict[str, Any]) -> None:
    from aimamba.config import to_mapping
    from aimamba.train.recipe import load_recipe
    from aimamba.train.stages import resolved
    from aimamba.train.toml import to_toml

    to_toml(resolved(to_mapping(load_recipe(recipe, overrides))))


def _read_images(images: Any) -> None:
    for _ in images.batches(2):
        pass


def _take_codes(folder: Path) -> None:
    """Read codes as a training does: of one split, or of both."""
    from aimamba.data.shards import open_code_splits, open_codes

    both = (folder / "train").is_dir()
    sets = open_code_splits(folder)[1:] if both else open_codes(folder)[1:]
    for codes in sets:
        codes.fingerprint()
        next(codes.batches(batch_size=5, seed=0))


def _save_names(names: list[str]) -> None:
    from aimamba.cli.output import file_names
    from aimamba.data.sheets import sheet

    made = file_names(names)
    assert len({name.casefold() for name in made}) == len(names), f"{names} share file names: {made}"
    dot = Image.new("RGB", (4, 4))
    sheet([[dot] for _ in names] or [[dot]], row_names=names or None, title=" ".join(names))


def _joined(*marks: str) -> st.SearchStrategy[str]:
    return st.lists(st.one_of(words, st.sampled_from(["photos", "avatars", *marks])), max_size=6).map("".join)


def _arguments() -> st.SearchStrategy[list[str]]:
    """Command lines: a command or another word, options that it has, and values that it may not have."""
    from importlib import import_module

    from aimamba.cli import COMMANDS
    from aimamba.cli.arguments import Parser

    # Relative paths inside the folder of the fuzzer, and nothing that leads out of it.
    inside = words.filter(lambda word: not set(word) & set("/~") and word != "..")
    values = st.one_of(
        inside,
        st.sampled_from(NUMBERS),
        st.sampled_from(["pipe", "photos", "set.npz", "recipe.toml", "codes", "cpu", "avatars:train:1", "plain", "1"]),
    )

    def of(name: str) -> st.SearchStrategy[list[str]]:
        parser = Parser(prog=f"aimamba {name}")
        import_module(f"aimamba.cli.{name.replace('-', '_')}").add_arguments(parser)
        options = [option for action in parser._actions for option in action.option_strings]
        option = st.sampled_from(sorted(options))
        piece = st.one_of(
            values.map(lambda value: [value]),
            option.map(lambda name: [name]),
            st.tuples(option, values).map(list),
            st.tuples(option, values).map(lambda pair: ["=".join(pair)]),
        )
        return st.lists(piece, max_size=5).map(lambda pieces: [name, *chain.from_iterable(pieces)])

    return st.one_of(st.sampled_from(sorted(COMMANDS)).flatmap(of), st.lists(values, max_size=3))


def _run(arguments: list[str]) -> None:
    """Run a command up to the point where its work begins."""
    from aimamba.cli import main

    def reached(*_: Any, **__: Any) -> None:
        raise ReachedError

    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        for name in _WORK:
            with contextlib.suppress(AttributeError):
                stack.enter_context(mock.patch(f"aimamba.{name}", reached))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            status = main(arguments)
        except ReachedError:
            return
        except SystemExit as leaving:
            status = leaving.code
    assert status in (0, 2), f"status {status}"
    if status == 2:
        *_, last = err.getvalue().splitlines() or [""]
        assert last.startswith("aimamba: "), f"expected a line of ours at the end, got {err.getvalue()!r}"


class _Good:
    """Writes small files that are as they should be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_photos(folder / "photos", ("cats", "dogs"), 2, width=9, height=8)

    def pipeline(self) -> Path:
        """A tiny pipeline without sums, so that a change gets as far as it can."""
        from aimamba.models import AiM, AiMConfig, VQConfig, VQModel
        from aimamba.pipeline import Pipeline

        settings: dict[str, Any] = {"width": 8, "num_blocks": 1, "state_size": 2, "head_width": 8, "adaln_groups": 1}
        generator = AiM(AiMConfig(vocab_size=8, num_tokens=4, num_classes=3, **settings))
        shape: dict[str, Any] = {"channels": 4, "channel_mult": (1, 1), "num_res_blocks": 1, "z_channels": 4}
        tokenizer = VQModel(VQConfig(codebook_size=8, codebook_dim=2, norm_groups=2, attention=False, **shape))
        for model in (generator, tokenizer):
            model.init_weights(torch.Generator().manual_seed(0))
        place = self.folder / "pipe"
        Pipeline(tokenizer, generator, ("cats", "dogs", "7")).save_pretrained(place)
        for path in place.rglob("*.json"):
            values = json.loads(path.read_text())
            values.pop("sha256")
            path.write_text(json.dumps(values))
        return place

    def official(self) -> Path:
        """A checkpoint that the official code wrote."""
        golden = Path(__file__).parents[1] / "golden" / "group2"
        place = self.folder / "official"
        place.mkdir()
        for name in ("config.json", "model.safetensors"):
            shutil.copy(golden / name, place)
        return place

    def pickle(self, tokenizer: Path) -> Path:
        """A file of weights as LlamaGen writes them; its keys are unknown, which is told last."""
        from safetensors.torch import load_file

        path = self.folder / "vq.pt"
        torch.save({"model": load_file(tokenizer / "model.safetensors"), "steps": 3}, path)
        return path

    def checkpoint(self) -> Path:
        """A checkpoint of a training run."""
        from aimamba.train.checkpoint import Checkpoint, write_checkpoint

        path = self.folder / "checkpoint.pt"
        parts = {"model": {"weight": torch.zeros(2, 2)}, "average": {"decay": 0.5}}
        write_checkpoint(path, Checkpoint(step=3, seconds=1.5, recipe=_RECIPE, parts=parts, basis={"images": "ab"}))
        return path

    def sharded(self) -> Path:
        """A checkpoint of many processes, written by one."""
        from torch.distributed.checkpoint import FileSystemWriter, save

        from aimamba.train.checkpoint_files import SHARDED_FORMAT

        folder = self.folder / "checkpoint-000003.dcp"
        with warnings.catch_warnings(action="ignore"):  # that this is one process
            save({"model/weight": torch.zeros(2, 2)}, storage_writer=FileSystemWriter(folder), no_dist=True)
        rest = {"parts": {"model": {"weight": None}, "average": {"decay": 0.5}}, "missing": [["model", "weight"]]}
        torch.save(rest, folder / "rest.pt")
        files = dict.fromkeys(("__0_0.distcp", ".metadata", "rest.pt"), "")
        values = {"step": 3, "seconds": 1.5, "recipe": _RECIPE, "basis": {"images": "ab"}, "files": files}
        (folder / "state.json").write_text(json.dumps({"format": SHARDED_FORMAT, **values}))
        self.sign(folder)
        return folder

    def sign(self, folder: Path) -> None:
        """Make the checksums those of the files, as someone would who changes them on purpose."""
        from aimamba.checkpoints.sums import SUMS_KEY, sum_of_file, sum_of_values

        values = json.loads((folder / "state.json").read_text())
        values["files"] = {name: sum_of_file(folder / name) for name in values["files"]}
        values[SUMS_KEY] = sum_of_values(values)
        (folder / "state.json").write_text(json.dumps(values))

    def code_splits(self) -> Path:
        """The codes of both splits, in two shards each, with sums."""
        from aimamba.data.encoding import encode_to_shards
        from aimamba.data.images import Images
        from aimamba.models import VQModel

        class Dots(Images):
            name, size, class_names, labels = "dots", 4, ("a", "b"), np.array([0, 1, 1])

            def __len__(self) -> int:
                return len(self.labels)

            def image(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
                return np.full((4, 4, 3), index, np.uint8)

        tokenizer = VQModel.from_pretrained(self.folder / "pipe" / "tokenizer")
        for split in ("train", "held-out"):
            encode_to_shards(tokenizer, Dots(), self.folder / "splits" / split, shard_pictures=2)
        return self.folder / "splits"

    def codes(self) -> Path:
        """The codes of three images in two shards, as an earlier version wrote them."""
        folder = self.folder / "codes"
        folder.mkdir()
        meta = {"tokenizer": "ab" * 32, "codebook_size": 8, "grid": [2, 2], "size": 4, "class_names": ["a", "b"]}
        (folder / "meta.json").write_text(
            json.dumps({**meta, "views": ["center"], "pictures": 3, "shard_pictures": 2, "images": "cd" * 32})
        )
        np.save(folder / "labels.npy", np.array([0, 1, 1]))
        for number, count in enumerate((2, 1)):
            np.save(folder / f"codes-0000{number}.npy", np.zeros((count, 1, 4), np.uint16))
        return folder

    def npz(self) -> Path:
        """Three images with labels and statistics, compressed."""
        path = self.folder / "set.npz"
        moments = {"mu": np.zeros(2), "sigma": np.eye(2)}
        np.savez_compressed(path, arr_0=np.zeros((3, 4, 4, 3), np.uint8), arr_1=np.array([0, 1, 1]), **moments)
        return path

    def images(self) -> dict[str, bytes]:
        """One image of each format, by suffix; the PNG has text chunks as ``aimamba sample`` writes them."""
        pixels = np.random.default_rng(1).integers(0, 256, (12, 9, 3), dtype=np.uint8)
        image, found = Image.fromarray(pixels), {}
        text = PngImagePlugin.PngInfo()
        text.add_text("aimamba", json.dumps({"class": "cats", "seed": 3, "cfg_scale": 1.5}))
        text.add_itxt("Software", "aimamba", zip=True)
        exif = Image.Exif()
        exif[0x0112] = 6
        options: dict[str, dict[str, Any]] = {"png": {"pnginfo": text}, "jpg": {"exif": exif}}
        options["tif"] = {"compression": "tiff_lzw"}
        for kind, name in _FORMATS.items():
            file = io.BytesIO()
            image.save(file, name, **options.get(kind, {}))
            found[kind] = file.getvalue()
        return found

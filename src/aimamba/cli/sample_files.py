"""The folder that ``aimamba sample`` writes: an image for each class and seed, its settings, and sheets of them."""

import json
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from aimamba.cli.output import file_names, write_json
from aimamba.config import to_mapping
from aimamba.data.files import open_image
from aimamba.data.png_text import read_png_text, write_png
from aimamba.data.sheets import page_of, sheet
from aimamba.data.writer import BackgroundWriter
from aimamba.documents import read_json
from aimamba.errors import DataError
from aimamba.generation import SamplingConfig
from aimamba.generation.record import ModelRecord, SampleRecord, parse_record
from aimamba.pipeline import Pipeline, Prompt
from aimamba.sharing import ALONE, Sharing

SETTINGS_FILE = "settings.json"

_LONGEST_STEM = 60  # characters of a prompt in the name of a file
_WIDE_SHEET = 32  # classes that may stand side by side on a sheet


class SampleFile(NamedTuple):
    """One image to be written.

    Attributes:
        path: The file.
        record: Everything that the image depends on.
    """

    path: Path
    record: SampleRecord

    def is_there(self) -> bool:
        """Return whether the file holds this image, whole and with these settings."""
        try:
            if not self.path.is_file() or parse_record(read_png_text(self.path), self.path) != self.record:
                return False
            open_image(self.path)
            with Image.open(self.path) as image:
                image.verify()  # the checksums of its chunks, which reading does not compare
        except (DataError, OSError, SyntaxError):
            return False
        return True


def plan(
    pipeline: Pipeline,
    wanted: Sequence[int | Prompt],
    seeds: range,
    config: SamplingConfig,
    model: ModelRecord,
    out: Path,
) -> list[list[SampleFile]]:
    """Return the files to write, one row for each class or prompt."""
    names = shown_names(pipeline, wanted)
    if any(isinstance(each, Prompt) for each in wanted):
        stems = file_names([name[:_LONGEST_STEM] for name in names])
    else:  # a class has the same name in every command
        every = file_names([pipeline.class_name(label) for label in range(pipeline.generator.config.num_classes)])
        stems = [every[label] for label in wanted if not isinstance(label, Prompt)]
    rows = []
    for each, stem in zip(wanted, stems, strict=True):
        text, label = each.text if isinstance(each, Prompt) else None, pipeline.label_of(each)
        name = pipeline.class_name(label)
        known = SampleRecord(class_name=name, label=label, prompt=text, sampling=config, model=model)
        rows.append(
            [
                SampleFile(out / f"{stem}-seed{seed}.png", replace(known, sampling=replace(config, seed=seed)))
                for seed in seeds
            ]
        )
    return rows


def shown_names(pipeline: Pipeline, wanted: Sequence[int | Prompt]) -> list[str]:
    """Return what stands beside the samples of each class or prompt."""
    names = []
    for each in wanted:
        name = pipeline.class_name(pipeline.label_of(each))
        if isinstance(each, Prompt):
            name = " ".join(each.text.split()) + (f" ({name})" if name else "")
        names.append(name)
    return names


def given_of(record: SampleRecord, null_class: int) -> int | Prompt:
    """Return what an image was drawn after."""
    if record.prompt is None:
        return record.label
    return Prompt(record.prompt, None if record.label == null_class else record.label)


def write_samples(
    pipeline: Pipeline,
    files: Sequence[SampleFile],
    batch_size: int,
    *,
    again: bool = False,
    sharing: Sharing = ALONE,
) -> int:
    """Generate the images that are not there yet, and write each batch as soon as it is finished.

    Args:
        pipeline: The model.
        files: What to write. The settings of all of them are equal but for the seed.
        batch_size: Images generated at once.
        again: Generate those that are there as well.
        sharing: The processes that share the batches. They see one folder.

    Returns:
        The number of images that were there.

    Raises:
        KeyboardInterrupt: With a message that says how many images are finished.
    """
    seen = sharing.once(lambda: "".join("10"[again or not file.is_there()] for file in files))
    finished = {file.path for file, mark in zip(files, seen, strict=True) if mark == "1"}
    there, tokens = len(finished), pipeline.generator.config.num_tokens
    null_class = pipeline.generator.condition.null_class
    wanted = 0  # images of the batch in the making that are to be written
    batches = _batches(files, finished, batch_size)
    look = "{l_bar}{bar}| {n:.1f}/{total:.0f} images [{elapsed}<{remaining}]"
    bar = tqdm(
        total=len(files) * tokens,
        initial=there * tokens,
        unit_scale=1 / tokens,
        bar_format=look,
        disable=not sharing.is_first,
    )
    units, written = sharing.units(len(batches), bar.update), sharing.units(0)
    begun: deque[Sequence[SampleFile]] = deque()

    def jobs() -> Iterator[list[tuple[int | Prompt, int]]]:
        nonlocal wanted
        for batch in map(batches.__getitem__, units):
            begun.append(batch)
            wanted = sum(file.path not in finished for file in batch)
            yield [(given_of(file.record, null_class), file.record.sampling.seed) for file in batch]

    counting = threading.Lock()

    def write(file: SampleFile, image: np.ndarray) -> None:
        write_png(file.path, Image.fromarray(image), file.record.to_text())
        with counting:
            written.advance(1)

    with bar:
        made = pipeline.batches(jobs(), files[0].record.sampling, progress=lambda _: units.advance(wanted))
        try:
            with BackgroundWriter() as writer:
                for found in made:
                    pairs = zip(begun.popleft(), found.images.numpy(), strict=True)
                    writer.put([partial(write, *pair) for pair in pairs if pair[0].path not in finished])
            units.finish()
        except KeyboardInterrupt as error:
            done = there + written.done
            error.args = (
                f"stopped with {done} of {len(files)} images finished, in {files[0].path.parent}; "
                "the same command goes on from there",
            )
            raise
    return there


def write_settings(out: Path, model: ModelRecord, config: SamplingConfig, rows: Sequence[Sequence[SampleFile]]) -> None:
    """Write ``settings.json``: the model, every setting, and class and seed of each image of this command.

    What it says of images of earlier commands that are still there is kept in ``earlier``.
    """
    images = [
        {
            "file": file.path.name,
            "class": file.record.class_name,
            "label": file.record.label,
            **({} if file.record.prompt is None else {"prompt": file.record.prompt}),
            "seed": file.record.sampling.seed,
        }
        for row in rows
        for file in row
    ]
    content: dict[str, Any] = {**to_mapping(model), "sampling": to_mapping(config), "images": images}
    if earlier := _earlier(out, {file.path.name for row in rows for file in row}):
        content["earlier"] = earlier
    write_json(out / SETTINGS_FILE, content)


def _earlier(out: Path, planned: set[str]) -> list[dict[str, Any]]:
    """Return what ``settings.json`` says of images that are there and not planned now; a damaged file says nothing."""
    try:
        before = read_json(out / SETTINGS_FILE)
        commands = [{key: value for key, value in before.items() if key != "earlier"}, *before.get("earlier", [])]
        for command in commands:
            names = [image["file"] for image in command["images"]]
            left = [name not in planned and (out / Path(name).name).is_file() for name in names]
            command["images"] = list(compress(command["images"], left))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []
    return [command for command in commands if command["images"]]


def others(out: Path, rows: Sequence[Sequence[SampleFile]]) -> int:
    """Return how many samples of earlier commands are in the folder."""
    planned = {file.path.name for row in rows for file in row}
    return sum(path.name not in planned for path in out.glob("*-seed*.png"))


def write_sheets(out: Path, rows: Sequence[Sequence[SampleFile]], names: Sequence[str], title: str, size: int) -> Path:
    """Write ``sheet.png`` and, where the rows do not fit on it, ``sheet-page-2.png`` and so on; return the first.

    Args:
        out: The folder.
        rows: Files of the images, one row for each class.
        names: Names of the classes.
        title: Written above the images.
        size: Side of an image in pixels.
    """
    page = page_of(size)
    shown = [row[: page.columns] for row in rows]
    first = out / "sheet.png"
    for old in out.glob("sheet-page-*.png"):
        old.unlink()
    if len(rows[0]) < len(rows) <= min(_WIDE_SHEET, page.columns):  # a wide sheet is easier to read than a tall one
        columns = list(zip(*_read(shown), strict=True))
        _save(first, sheet(columns, column_names=names, title=title), title)
        return first
    pages = range(0, len(rows), page.rows)
    for number, start in enumerate(pages, 1):
        chosen = slice(start, start + page.rows)
        heading = title if len(pages) == 1 else f"{title}, page {number} of {len(pages)}"
        path = first if number == 1 else out / f"sheet-page-{number}.png"
        _save(path, sheet(_read(shown[chosen]), row_names=names[chosen], title=heading), heading)
    return first


def _read(rows: Sequence[Sequence[SampleFile]]) -> list[list[Image.Image]]:
    return [[open_image(file.path) for file in row] for row in rows]


def _save(path: Path, image: Image.Image, title: str) -> None:
    write_png(path, image, json.dumps({"sheet": title}))


def _batches(files: Sequence[SampleFile], finished: set[Path], batch_size: int) -> list[Sequence[SampleFile]]:
    """Return the batches to generate.

    An interrupted command has finished some batches and a part of one at most. They are then those of the command as it
    was, since rounding may depend on the batch (see ``docs/quickstart.md``). Otherwise only what is missing is batched.
    """
    batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    counts = [sum(file.path not in finished for file in batch) for batch in batches]
    if sum(0 < count < len(batch) for count, batch in zip(counts, batches, strict=True)) <= 1:
        return [batch for count, batch in zip(counts, batches, strict=True) if count]
    missing = [file for file in files if file.path not in finished]
    return [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]

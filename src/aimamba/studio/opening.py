"""Images that people bring: photos to redraw, and PNG files that restore what they were made with."""

import base64
import secrets
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from aimamba.data.png_text import png_bytes, text_in_png
from aimamba.errors import DataError, printable
from aimamba.generation.record import SampleRecord, parse_record
from aimamba.pipeline.images import read_images
from aimamba.serve.edit_jobs import checked, read_image
from aimamba.serve.errors import ApiError
from aimamba.serve.service import Service
from aimamba.studio.choice import Choice
from aimamba.studio.controls import Controls, show_controls
from aimamba.studio.frames import Frame, data_url, failure, file_name, read_codes, write_codes

_GUESSED = 64  # classes; among more of them guessing would take too long


async def open_image(service: Service, choice: Choice, asked: Any) -> tuple[Any, ...]:
    """Show an image and restore its class, seed and settings, if it holds them.

    Args:
        service: The model.
        choice: What says the class.
        asked: ``data``, the file in base64; ``name``; and ``codes``, if the page knows them from when it was made.

    Returns:
        A frame, and updates of the choice and of the controls.
    """
    untouched = [gr.skip()] * len(Controls._fields)
    try:
        sent = asked if isinstance(asked, dict) else {}
        content, name = _content(service, sent.get("data")), str(sent.get("name") or "the image")[:80]
        codes, pixels = await read_image(service, content, "image", lambda image: _read(service, image))
        record, lost = _record(content, name)
        if sent.get("codes"):
            codes = read_codes(sent["codes"], service)
        if record is None:
            label, message = await _unknown(service, codes, lost)
            frame = _frame(service, pixels, codes, label, message, name="uploaded")
            return frame, gr.skip() if label is None else label, *untouched
        given, message = _known(service, record)
        frame = _frame(service, pixels, codes, given, message, record=record)
        return (
            frame,
            gr.skip() if given is None else given,
            *show_controls(record.sampling, service.pipeline.generator.config.vocab_size),
        )
    except Exception as error:
        return failure(error), gr.skip(), *untouched


def _content(service: Service, data: Any) -> bytes:
    try:
        content = base64.b64decode(str(data).rpartition(",")[2], validate=True)
    except ValueError:
        raise ApiError(422, "this is not an image file", field="image") from None
    if len(content) > service.config.upload_bytes:
        raise ApiError(413, f"the file has more than the {service.config.upload_bytes:,} bytes that are allowed")
    return content


def _read(service: Service, image: Image.Image) -> Any:
    """Return codes and pixels of the centre square of an image."""
    pixels = read_images(image, service.pipeline.image_size, "crop")
    return service.pipeline.encode(pixels).cpu(), pixels[0].permute(1, 2, 0).contiguous().numpy()


def _record(content: bytes, name: str) -> tuple[SampleRecord | None, str]:
    """Return what a file says of how it was made; without that, None and what is wrong with it, if anything."""
    text = text_in_png(content)
    if text is None:
        return None, ""
    try:
        return parse_record(text, Path(name)), ""
    except DataError as error:
        return None, f"Its settings cannot be read ({error}). "


async def _unknown(service: Service, codes: Any, lost: str) -> tuple[int | None, str]:
    """Return class and message of an image that holds no settings."""
    if service.pipeline.generator.config.text is not None:
        return None, f"{lost}Say what it shows, then keep its top or paint over a part."
    if service.pipeline.generator.config.num_classes > _GUESSED:
        return None, f"{lost}Choose the class that it shows, then keep its top or paint over a part."
    everything = service.pipeline.first_tokens(service.length)
    label = int((await checked(lambda: service.pipeline.guess(codes, None, everything), "image"))[0])
    return label, f"{lost}The model takes it for one of {service.pipeline.class_name(label)}; choose another if not."


def _known(service: Service, record: SampleRecord) -> tuple[int | str | None, str]:
    """Return class or prompt, and message, of an image that holds its settings."""
    try:
        if record.prompt is not None:
            label: int | str = service.given(record.prompt, None).text
        else:
            label = service.label(record.class_name, "class_name")
    except ApiError:
        if record.prompt is not None:
            return None, "Settings restored. It was drawn after a prompt, which this model does not take."
        return None, f"Settings restored. This model has no class {printable(record.class_name)[:60]}; choose another."
    if record.model.fingerprint != service.record.fingerprint:
        return label, f"Settings restored. It was made by {record.model.model}, so this model draws another image."
    made = {"complete": "by keeping the top of another image", "inpaint": "by painting over another image",
            "interpolate": "on the way between two classes"}  # fmt: skip
    what = "Class" if record.prompt is None else "Prompt"
    if record.edit is not None:
        return label, f"{what}, seed and settings restored. It was made {made[record.edit.command]}."
    return label, f"{what}, seed and settings restored: the button draws it again."


def _frame(
    service: Service,
    pixels: np.ndarray,
    codes: Any,
    label: int | str | None,
    message: str,
    *,
    record: SampleRecord | None = None,
    name: str = "",
) -> Frame:
    text = None if record is None else record.to_text()
    said = "" if record is None else record.prompt or record.class_name
    tile = {
        "label": label,
        "class": said or "your image",
        "seed": None if record is None else str(record.sampling.seed),
        "about": "" if record is None else record.sampling.describe(),
    }
    news = {
        "tile": 0,
        "tokens": service.length,
        "src": data_url(png_bytes(Image.fromarray(pixels), text), "image/png"),
        "codes": write_codes(codes[0]),
        "name": f"{name}.png" if record is None else file_name(said[:40], record.sampling.seed),
    }
    return {"run": secrets.token_hex(4), "state": "opened", "kind": "image", "tiles": [tile], "of": service.length,
            "news": [news], "message": message}  # fmt: skip

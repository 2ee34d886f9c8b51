"""What a sample depends on, as it is kept in its PNG file."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aimamba.config import check, from_mapping, to_mapping
from aimamba.documents import DocumentError, parse_json
from aimamba.errors import ConfigError, DataError
from aimamba.generation.sampling import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """The model and how it was run.

    Attributes:
        model: Its name, as the user gave it.
        tokenizer: Name of the tokenizer, if it was given separately.
        fingerprint: ``Pipeline.fingerprint()``.
        dtype: Dtype of its weights.
        engine: Engine that computed the decoding steps.
        device: Type of the device, such as ``cpu``.
        aimamba: Version of this package.
    """

    model: str
    tokenizer: str | None = None
    fingerprint: str
    dtype: str
    engine: str
    device: str
    aimamba: str

    def __post_init__(self) -> None:
        check(
            re.fullmatch(r"[0-9a-f]{64}", self.fingerprint) is not None,
            f"fingerprint must have 64 hex digits, got {self.fingerprint[:80]!r}",
        )


@dataclass(frozen=True, kw_only=True)
class EditRecord:
    """How an image was made of another one, or of two classes.

    Attributes:
        command: The command of ``aimamba``.
        image: Name of the file of the image it began with.
        image_codes: SHA-256 of that image's codes, as 64 hex digits.
        keep_rows: Rows of tokens that were kept.
        masked: Tokens that were drawn again, in raster order.
        method: How candidates were weighed, see ``aimamba.generation.inpainting``.
        candidates: How many there were.
        keep_pixels: Whether pixels outside of the mask are those of the image.
        classes: Both ends of an interpolation.
        share: The part of the way, from 0 to 1.
        path: Form of the way.
    """

    command: Literal["complete", "inpaint", "interpolate"]
    image: str | None = None
    image_codes: str | None = None
    keep_rows: int | None = None
    masked: tuple[int, ...] | None = None
    method: str | None = None
    candidates: int | None = None
    keep_pixels: bool | None = None
    classes: tuple[str, ...] | None = None
    share: float | None = None
    path: str | None = None


@dataclass(frozen=True, kw_only=True)
class SampleRecord:
    """Everything that one image depends on.

    Attributes:
        class_name: Name of its class; empty for the null class, as of a prompt alone.
        label: Number of its class.
        prompt: The sentence that it was drawn after, for generators that take captions.
        sampling: Settings of sampling, with the seed of this image.
        model: The model.
        edit: How it was made, unless of its class alone.
    """

    class_name: str
    label: int
    prompt: str | None = None
    sampling: SamplingConfig
    model: ModelRecord
    edit: EditRecord | None = None

    def __post_init__(self) -> None:
        check(self.label >= 0, f"label must be 0 or more, got {self.label}")

    def to_text(self) -> str:
        """Return the record as ASCII JSON."""
        return json.dumps(to_mapping(self))


def parse_record(text: str, path: Path) -> SampleRecord:
    """Read a record.

    Args:
        text: What ``SampleRecord.to_text`` returned, or anything else.
        path: The file that it is from, for messages.

    Raises:
        DataError: It is not the record of a sample.
    """
    try:
        values = parse_json(text)
        if not isinstance(values, dict):
            raise DocumentError(f"expected an object, got {type(values).__name__}")
        if "sheet" in values:
            raise DataError(f"{path}: this is a sheet of many samples; give one of the images beside it")
        return from_mapping(SampleRecord, values, where="settings")
    except (DocumentError, ConfigError) as error:
        raise DataError(f"{path}: its text is not the settings of a sample ({error})") from error

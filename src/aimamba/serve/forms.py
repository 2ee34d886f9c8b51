"""Bodies of the routes that edit: forms with uploaded images, and what lies between two classes."""

from typing import Annotated, Any, Literal

from fastapi import Form, UploadFile
from pydantic import ConfigDict, Field

from aimamba.serve.schemas import ClassName, Count, Label, Seed, Sentence, Settings

_CLASS = "By default the one in the settings that a PNG of ours holds, or else the one that the rest is likeliest of."


_PROMPT = "What the image is to show, for a model that takes prompts; class_name stands beside it."


class Edit(Settings):
    """What all of them have; a form holds only texts, so numbers are converted."""

    model_config = ConfigDict(strict=False)

    n: Count = Field(1, description="Number of images.")
    seed: Seed = Field(0, description="Seed of the first image; each further image adds 1.")
    format: Literal["json", "png", "webp"] = "json"
    encoding: Literal["png", "webp"] = "png"


class Completion(Edit):
    """Body of ``POST /v1/completions``."""

    image: UploadFile
    keep_rows: Annotated[int, Field(ge=1, le=10_000)] = Field(description="Rows of tokens to keep, from the top.")
    class_name: ClassName | None = Field(None, description=_CLASS)
    prompt: Sentence | None = Field(None, description=_PROMPT)
    fit: Literal["exact", "crop", "stretch"] = Field("crop", description="What becomes of an image of another size.")


class Inpainting(Edit):
    """Body of ``POST /v1/inpaintings``."""

    image: UploadFile
    mask: UploadFile = Field(description="White where to draw again; of the model's size.")
    class_name: ClassName | None = Field(None, description=_CLASS)
    prompt: Sentence | None = Field(None, description=_PROMPT)
    fit: Literal["exact", "crop", "stretch"] = Field("crop", description="What becomes of an image of another size.")
    method: Literal["resample", "best", "plain"] = Field("resample", description="See docs of inpainting.")
    candidates: Annotated[int, Field(ge=1, le=64)] = Field(16, description="Candidates for each image.")
    keep_pixels: bool = Field(False, description="Whether pixels outside of the mask stay those of the image.")


class Interpolation(Settings):
    """Body of ``POST /v1/interpolations``."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"a": "planets", "b": "sprouts", "steps": 5}]})

    a: Sentence | Label
    b: Sentence | Label
    steps: Annotated[int, Field(ge=2, le=10_000)] = Field(8, description="Number of images, with both ends.")
    prompts: bool = Field(False, description="Whether a and b are prompts, for a model that takes them.")
    path: Literal["linear", "sphere"] = "sphere"
    seed: Seed = 0
    format: Literal["json", "png", "webp"] = "json"
    encoding: Literal["png", "webp"] = "png"


def edit_form(kind: type[Edit]) -> Any:
    """Return the annotation of a parameter that is read from a form with files."""
    return Annotated[kind, Form(media_type="multipart/form-data")]

"""Bodies of requests and answers, as they stand in the OpenAPI document."""

from http import HTTPStatus
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from aimamba.generation import SamplingConfig
from aimamba.generation.sampling import LARGEST_SCALE, LARGEST_TOP_K

_LARGEST = (1 << 63) - 1  # of a seed

ClassName = Annotated[str, Field(min_length=1, max_length=200)]
Sentence = Annotated[str, Field(max_length=2000)]
Label = Annotated[int, Field(ge=0, lt=1 << 31)]
Seed = Annotated[int, Field(ge=0, le=_LARGEST)]
Count = Annotated[int, Field(ge=1, le=10_000)]
Every = Annotated[int, Field(ge=1, le=100_000)]


class Body(BaseModel):
    """A body of a request: unknown fields are errors, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Settings(Body):
    """Settings of sampling but for the seed, as ``SamplingConfig`` has them."""

    temperature: float = Field(1.0, ge=0, description="Divides the logits; 0 takes the most likely token.")
    temperature_end: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Temperature of the last token; by default as for the first."
    )
    top_k: int = Field(0, ge=0, le=LARGEST_TOP_K, description="Sample among the k most likely tokens; 0 for all.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample among the tokens that reach this probability.")
    min_p: float = Field(0.0, ge=0, lt=1, description="Leave out tokens below this share of the likeliest one's.")
    cfg_scale: float = Field(1.0, ge=0, le=LARGEST_SCALE, description="Scale of guidance; 1 means none.")
    cfg_schedule: Literal["constant", "linear", "power-cosine"] = Field(
        "constant", description="Course of the scale from the first token to the last."
    )
    cfg_power: float = Field(1.0, gt=0, le=LARGEST_SCALE, description="The power of power-cosine.")
    cfg_start: float = Field(0.0, ge=0, le=1, description="Where guidance begins, as a share of the tokens.")
    cfg_end: float = Field(1.0, ge=0, le=1, description="Where guidance ends; it must be after cfg_start.")
    negative: Sentence | Label | None = Field(
        None, description="Class to be guided away from; a text is a prompt where the model takes them."
    )

    def sampling(self, seed: int) -> SamplingConfig:
        """Return the settings for an image with this seed."""
        return SamplingConfig(seed=seed, **{name: getattr(self, name) for name in Settings.model_fields})


class Wanted(Settings):
    """Which images are wanted."""

    classes: list[ClassName | Label] | None = Field(
        None, min_length=1, max_length=1000,
        description="Names or numbers of classes, as 'GET /v1/models' lists them.",
    )  # fmt: skip
    prompts: list[Sentence] | None = Field(
        None, min_length=1, max_length=1000,
        description="Sentences, for a model that takes them; with classes, each in each of these.",
    )  # fmt: skip
    n: Count = Field(1, description="Images of each class or prompt.")
    seed: Seed = Field(0, description="Seed of the first image of each class; each further image adds 1.")
    seeds: list[Seed] | None = Field(
        None, min_length=1, max_length=10_000, description="Seeds of the images of each class, in place of n and seed."
    )


class ImagesBody(Wanted):
    """Body of ``POST /v1/images``."""

    format: Literal["json", "png", "webp"] = Field(
        "json",
        description="json: an object with base64. png, webp: the file itself, and a zip archive of several images.",
    )
    encoding: Literal["png", "webp"] = Field("png", description="Of the images in json. Both are without loss.")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"classes": ["planets"], "cfg_scale": 1.5, "temperature": 0.8, "seed": 7, "format": "png"},
                {"classes": ["planets", 3], "n": 4, "top_k": 100},
            ]
        }
    )


class StreamBody(Wanted):
    """Body of ``POST /v1/images/stream``."""

    every: Every = Field(8, description="Tokens between two previews of an image.")
    encoding: Literal["png", "webp"] = "png"

    model_config = ConfigDict(json_schema_extra={"examples": [{"classes": ["planets"], "seed": 7, "every": 16}]})


class Picture(BaseModel):
    """A finished image in JSON."""

    index: int = Field(description="Number in the order of the request: class by class.")
    class_name: str
    label: int
    prompt: str | None = None
    seed: int
    media_type: str
    b64_json: str = Field(description="The image file in base64.")


class Images(BaseModel):
    """Answer of ``POST /v1/images`` as JSON."""

    created: int = Field(description="Seconds since 1970.")
    model: str
    size: int = Field(description="Side of the images in pixels.")
    images: list[Picture]


class Model(BaseModel):
    """A model that can be used."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When the server was started, in seconds since 1970.")
    owned_by: str = "aimamba"
    size: int = Field(description="Side of an image in pixels.")
    tokens: int = Field(description="Tokens of an image.")
    classes: list[str] = Field(description="Names of the classes in the order of their numbers.")
    prompts: bool = Field(description="Whether it takes prompts.")


class Models(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = Field(description="The field that is wrong.")
    code: int = Field(description="The HTTP status.")


class Error(BaseModel):
    """Answer with an error status."""

    error: ErrorBody


class GenerationsBody(Settings):
    """Body of ``POST /v1/images/generations``: what OpenAI's clients send, and settings of sampling beside it.

    Fields of that API that have no meaning here (``quality``, ``style``, ``user`` and so on) are ignored.
    """

    model_config = ConfigDict(
        extra="ignore", strict=False, json_schema_extra={"examples": [{"prompt": "planets", "n": 2, "size": "64x64"}]}
    )

    prompt: str = Field(
        min_length=1,
        max_length=2000,
        description="What to draw; of a model that knows classes alone, their names or numbers, separated by commas.",
    )
    model: str | None = Field(None, max_length=500, description="The model; there is one, so it may be left out.")
    n: Count | None = Field(None, description="Images in all, of the classes in turn; by default one of each class.")
    size: str | None = Field(None, max_length=20, description="The model's size, as in 64x64, or auto.")
    response_format: Literal["b64_json"] | None = Field(None, description="There are no URLs here.")
    output_format: Literal["png", "webp"] | None = None
    stream: Literal[False] | None = Field(None, description="POST /v1/images/stream has previews.")
    seed: Seed | None = Field(None, description="Seed of the first image; by default a random one.")


class GeneratedPicture(BaseModel):
    """An image as OpenAI's clients read it."""

    b64_json: str
    revised_prompt: str = Field(description="The prompt, or the class.")
    seed: int


class Generations(BaseModel):
    """Answer of ``POST /v1/images/generations``."""

    created: int
    data: list[GeneratedPicture]
    output_format: str
    size: str


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of these statuses, whatever the media type of the answer without an error."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{Error.__name__}"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}

"""Images over HTTP: the same as the pipeline's, in every form."""

import base64
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aimamba.data.png_text import KEY
from aimamba.generation import SamplingConfig
from aimamba.generation.record import parse_record
from tests.serve.conftest import NAMES

SETTINGS = {"temperature": 0.9, "top_k": 12, "cfg_scale": 2.0, "cfg_schedule": "linear"}


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def expected(tiny, labels, seeds, **settings):
    config = SamplingConfig(**settings)
    codes = [list(tiny.generate(torch.tensor([label]), config, seeds=[seed]))[-1] for label in labels for seed in seeds]
    return [np.asarray(image.permute(1, 2, 0)) for image in tiny.decode(torch.cat(codes))]


def events(text):
    blocks = [block for block in text.split("\n\n") if block]
    for block in blocks:
        name, data = block.split("\n")
        yield name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def test_images_in_json_are_those_of_the_pipeline_and_hold_their_settings(client, tiny):
    wanted = {"classes": ["striped", 4, "#0"], "n": 2, "seed": 5, **SETTINGS}
    answer = client.post("/v1/images", json=wanted)
    assert answer.status_code == 200
    found = answer.json()
    assert (found["model"], found["size"]) == ("tiny", tiny.image_size)
    assert [(each["index"], each["label"], each["seed"]) for each in found["images"]] == [
        (0, 2, 5), (1, 2, 6), (2, 4, 5), (3, 4, 6), (4, 0, 5), (5, 0, 6),
    ]  # fmt: skip
    assert found["images"][0]["class_name"] == NAMES[2]
    files = [base64.b64decode(each["b64_json"]) for each in found["images"]]
    for file, image in zip(files, expected(tiny, [2, 4, 0], [5, 6], **SETTINGS), strict=True):
        assert np.array_equal(pixels(file), image)
    record = parse_record(Image.open(io.BytesIO(files[1])).info[KEY], Path("it"))
    assert record.sampling == SamplingConfig(seed=6, **SETTINGS)
    assert (record.class_name, record.model.model) == (NAMES[2], "tiny")


@pytest.mark.parametrize("encoding", ["png", "webp"])
def test_one_image_comes_as_a_file_and_several_as_an_archive(client, tiny, encoding):
    answer = client.post("/v1/images", json={"classes": [1], "seeds": [9], "format": encoding})
    assert answer.headers["content-type"] == f"image/{encoding}"
    assert (answer.headers["x-label"], answer.headers["x-seed"]) == ("1", "9")
    one, two = expected(tiny, [1], [9, 3])
    assert np.array_equal(pixels(answer.content), one)
    answer = client.post("/v1/images", json={"classes": [1], "seeds": [9, 3], "format": encoding})
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.namelist() == [f"000-class1-seed9.{encoding}", f"001-class1-seed3.{encoding}"]
    assert np.array_equal(pixels(archive.read(archive.namelist()[1])), two)


def test_a_stream_shows_images_grow(client, tiny):
    with client.stream("POST", "/v1/images/stream", json={"classes": [0, 3], "every": 4}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = list(events(answer.read().decode()))
    images = {each["index"]: base64.b64decode(each["b64_json"]) for name, each in found if name == "image"}
    for index, image in enumerate(expected(tiny, [0, 3], [0])):
        assert np.array_equal(pixels(images[index]), image)
    previews = [each for name, each in found if name == "preview"]
    assert {(each["tokens"], each["of"]) for each in previews} <= {(4, 9), (8, 9)}
    assert previews
    shown = {each.tokens: each.images for each in tiny.stream([0, 3], every=4, output_type="numpy")}
    for preview in previews:
        image = shown[preview["tokens"]][preview["index"]]
        assert np.array_equal(pixels(base64.b64decode(preview["b64_json"])), image)
    assert found[-1] == ("done", {"images": 2})


def test_clients_of_openai_are_understood(client, tiny):
    body = {"prompt": "spotted, small, round", "size": "6x6", "seed": 8, "model": "tiny", "quality": "high", "n": 3}
    found = client.post("/v1/images/generations", json=body).json()
    assert [(each["revised_prompt"], each["seed"]) for each in found["data"]] == [
        (NAMES[1], 8), (NAMES[3], 9), (NAMES[1], 10),
    ]  # fmt: skip
    [image] = expected(tiny, [3], [9])
    assert np.array_equal(pixels(base64.b64decode(found["data"][1]["b64_json"])), image)
    assert len(client.post("/v1/images/generations", json={"prompt": "odd,round"}).json()["data"]) == 2


def test_models_say_what_they_have(client, tiny):
    [model] = client.get("/v1/models").json()["data"]
    assert (model["id"], model["classes"], model["tokens"]) == ("tiny", list(NAMES), 9)
    assert client.get("/v1/models/tiny").json() == model
    answer = client.get("/v1/models/other")
    assert answer.status_code == 404
    assert "there is 'tiny'" in answer.json()["error"]["message"]


def test_metrics_count_requests_and_images(client):
    client.post("/v1/images", json={"classes": [0], "n": 2})
    client.post("/v1/images", json={"classes": [99]})
    client.get("/v1/nothing/at/all")
    text = client.get("/metrics").text
    for line in (
        'aimamba_requests_total{route="/v1/images",status="200"} 1.0',
        'aimamba_requests_total{route="/v1/images",status="422"} 1.0',
        'aimamba_requests_total{route="unknown",status="404"} 1.0',
        "aimamba_images_total 2.0",
        "aimamba_tokens_total 18.0",
        "aimamba_queue_seconds_count 1.0",
    ):
        assert line in text


def test_every_setting_of_sampling_is_a_field_with_its_default():
    from aimamba.serve.schemas import GenerationsBody, Wanted

    for name, field in SamplingConfig.__dataclass_fields__.items():
        assert Wanted.model_fields[name].default == field.default
        assert name == "seed" or GenerationsBody.model_fields[name].default == field.default

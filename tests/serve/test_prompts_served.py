"""Prompts over HTTP: images, streams, edits, OpenAI's clients, and what is refused."""

import base64
import io
import json

import pytest
import torch
from PIL import Image

from aimamba import Pipeline, Prompt, SamplingConfig
from aimamba.data.png_text import text_in_png
from aimamba.data.vocabulary import Vocabulary
from aimamba.models.text import TextConfig

ROCKET, CAT = "a red rocket", "a black cat"


@pytest.fixture(scope="module")
def reader(make_aim, make_vq):
    vocabulary = Vocabulary.train([ROCKET, CAT], 280)
    text = TextConfig(tokens=8, vocabulary=len(vocabulary), width=32, blocks=1)
    return Pipeline(make_vq(), make_aim(text=text), ("plain", "odd", "a", "b", "c"), vocabulary, engine="plain")


@pytest.fixture
def served(make_client, reader):
    return make_client(reader)


def pixels(content):
    return Image.open(io.BytesIO(content)).convert("RGB").tobytes()


def expected(reader, given, **settings):
    return reader([given], 1, SamplingConfig(**settings))[0].tobytes()


def test_prompts_alone_beside_classes_and_negative(served, reader):
    body = {"prompts": [ROCKET, CAT], "n": 2, "seed": 4, "cfg_scale": 2.0, "negative": "a dog"}
    found = served.post("/v1/images", json=body).json()["images"]
    assert [(image["prompt"], image["seed"], image["class_name"], image["label"]) for image in found] == [
        (text, seed, "", 5) for text in (ROCKET, CAT) for seed in (4, 5)
    ]
    content = base64.b64decode(found[3]["b64_json"])
    assert pixels(content) == expected(reader, Prompt(CAT), seed=5, cfg_scale=2.0, negative="a dog")
    record = json.loads(text_in_png(content))
    assert (record["prompt"], record["sampling"]["negative"]) == (CAT, "a dog")
    both = served.post("/v1/images", json={"prompts": [CAT], "classes": ["odd", 0], "format": "json"}).json()["images"]
    assert [image["class_name"] for image in both] == ["odd", "plain"]
    assert pixels(base64.b64decode(both[0]["b64_json"])) == expected(reader, Prompt(CAT, "odd"))
    classes = served.post("/v1/images", json={"classes": ["odd"], "format": "png"})
    assert pixels(classes.content) == expected(reader, "odd")
    assert served.get("/v1/models").json()["data"][0]["prompts"] is True


def test_a_stream_of_previews(served, reader):
    answer = served.post("/v1/images/stream", json={"prompts": [ROCKET], "every": 3})
    events = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    shown = [json.loads(event[6:]) for event in events]
    assert [each["tokens"] for each in shown if "tokens" in each and each["tokens"] < 9] == [3, 6]
    last = next(each for each in shown if "b64_json" in each and "tokens" not in each)
    assert pixels(base64.b64decode(last["b64_json"])) == expected(reader, Prompt(ROCKET))


def test_openai_clients_say_what_to_draw(served, reader):
    body = {"prompt": f"{ROCKET}, {CAT}", "n": 2, "seed": 1}
    data = served.post("/v1/images/generations", json=body).json()["data"]
    assert [image["revised_prompt"] for image in data] == [f"{ROCKET}, {CAT}"] * 2
    assert pixels(base64.b64decode(data[1]["b64_json"])) == expected(reader, Prompt(f"{ROCKET}, {CAT}"), seed=2)


def test_edits_take_prompts_and_keep_those_of_a_png(served, reader):
    drawn = served.post("/v1/images", json={"prompts": [ROCKET], "format": "png"}).content
    image = Image.open(io.BytesIO(drawn))
    files = {"image": ("image.png", drawn, "image/png")}
    for form, given in (({"prompt": CAT}, Prompt(CAT)), ({}, Prompt(ROCKET)), ({"class_name": "odd"}, "odd")):
        answer = served.post("/v1/completions", data={"keep_rows": 1, "format": "png", **form}, files=files)
        [completed] = reader.complete(image, 1, given)
        assert pixels(answer.content) == completed.tobytes()
    mask = io.BytesIO()
    Image.new("L", image.size, 255).save(mask, "PNG")
    files["mask"] = ("mask.png", mask.getvalue(), "image/png")
    form = {"prompt": CAT, "format": "png", "candidates": 2, "cfg_scale": 2, "negative": "a dog"}
    answer = served.post("/v1/inpaintings", data=form, files=files)
    config = SamplingConfig(cfg_scale=2.0, negative="a dog")
    [painted] = reader.inpaint(image, torch.ones(3, 3, dtype=torch.bool), Prompt(CAT), 1, config, candidates=2)
    assert pixels(answer.content) == painted.tobytes()
    body = {"a": ROCKET, "b": CAT, "prompts": True, "steps": 3}
    strip = served.post("/v1/interpolations", json=body).json()["images"]
    middle = reader.interpolate(Prompt(ROCKET), Prompt(CAT), 3)[1]
    assert pixels(base64.b64decode(strip[1]["b64_json"])) == middle.tobytes()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompts"),
        ({"prompts": []}, "prompts"),
        ({"prompts": ["x" * 2001]}, "prompts[0]"),
        ({"prompts": ROCKET}, "prompts"),
        ({"prompts": [ROCKET], "classes": ["nothing"]}, "classes[0]"),
        ({"prompts": [ROCKET] * 9}, "n"),
        ({"prompts": [ROCKET], "negative": "a dog"}, "negative"),
        ({"prompts": [ROCKET], "cfg_scale": 2.0, "negative": "9"}, "negative"),  # digits are a class
    ],
)
def test_bad_bodies_name_their_field(served, body, field):
    answer = served.post("/v1/images", json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == field


def test_a_model_of_classes_refuses_prompts(client):
    for path, body in (
        ("/v1/images", {"prompts": [ROCKET]}),
        ("/v1/interpolations", {"a": ROCKET, "b": CAT, "prompts": True}),
    ):
        answer = client.post(path, json=body)
        assert answer.status_code == 422
        assert "takes classes and no prompts" in answer.json()["error"]["message"]
        assert answer.json()["error"]["param"] == "prompts"
    assert client.post("/v1/images", json={}).json()["error"]["param"] == "classes"

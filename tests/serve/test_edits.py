"""Completions, inpaintings and interpolations over HTTP: the same as the pipeline's."""

import asyncio
import base64
import io

import numpy as np
import pytest
from PIL import Image

from aimamba.data.png_text import KEY, png_bytes
from aimamba.generation import SamplingConfig
from aimamba.generation.batch import Job
from aimamba.generation.record import parse_record
from tests.serve.test_limits import error
from tests.serve.test_serve_images import pixels

SETTINGS = {"temperature": 0.8, "cfg_scale": 1.5}


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def given(tiny):
    return np.random.default_rng(3).integers(0, 256, (tiny.image_size, tiny.image_size, 3), dtype=np.uint8)


def images(answer):
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(each["b64_json"]) for each in answer.json()["images"]]


def same(files, arrays):
    return all(np.array_equal(pixels(file), array) for file, array in zip(files, arrays, strict=True))


def test_a_completion_keeps_the_top(client, tiny, given, tmp_path):
    data = {"keep_rows": 2, "n": 3, "seed": 4, "class_name": "odd", **SETTINGS}
    found = images(client.post("/v1/completions", data=data, files={"image": png(given)}))
    config = SamplingConfig(seed=4, **SETTINGS)
    assert same(found, tiny.complete(given, 2, "odd", 3, config, output_type="numpy"))
    record = parse_record(Image.open(io.BytesIO(found[0])).info[KEY], tmp_path)
    assert (record.edit.command, record.edit.keep_rows, record.class_name) == ("complete", 2, "odd")


def test_the_class_of_an_upload_is_guessed_and_other_sizes_are_cropped(client, tiny, given):
    wide = np.concatenate([np.zeros_like(given), given, np.zeros_like(given)], axis=1)
    answer = client.post("/v1/completions", data={"keep_rows": 1, "format": "png"}, files={"image": png(wide)})
    assert same([answer.content], tiny.complete(given, 1, output_type="numpy"))
    strict = client.post("/v1/completions", data={"keep_rows": 1, "fit": "exact"}, files={"image": png(wide)})
    assert error(strict, 422)["param"] == "image"


def test_the_class_in_the_settings_of_a_png_comes_first(client, tiny, given):
    [file] = images(client.post("/v1/images", json={"classes": ["striped"], "seed": 5}))
    array = np.asarray(Image.open(io.BytesIO(file)))
    assert tiny.given_in(file) == 2
    found = images(client.post("/v1/completions", data={"keep_rows": 1, "seed": 9}, files={"image": file}))
    assert same(found, tiny.complete(array, 1, "striped", 1, SamplingConfig(seed=9), output_type="numpy"))
    mask = np.zeros(given.shape[:2], np.uint8)
    mask[2:4, 2:] = 255
    files = {"image": file, "mask": png(mask)}
    answer = client.post("/v1/inpaintings", data={"class_name": "odd", "candidates": 2}, files=files).json()
    assert answer["images"][0]["class_name"] == "odd"  # one that is given comes before all
    assert client.post("/v1/inpaintings", data={"candidates": 2}, files=files).json()["images"][0]["label"] == 2


def test_settings_that_name_no_class_of_the_model_are_passed_over(tiny, given):
    record = '{"class_name": "other", "label": 1, "sampling": {}, "model": {}}'
    for content in (png(given), b"", png_bytes(Image.fromarray(given), "{"), png_bytes(Image.fromarray(given), record)):
        assert tiny.given_in(content) is None


def test_a_field_of_an_edit_that_has_no_effect_is_named(client, given):
    data, files = {"method": "plain", "candidates": 4}, {"image": png(given), "mask": png(given)}
    assert error(client.post("/v1/inpaintings", data=data, files=files), 422)["param"] == "candidates"


def test_an_upload_is_refused_before_it_is_decoded_if_the_queue_is_full_and_does_not_wait_for_ever(
    make_client, brake, given, monkeypatch
):
    client = make_client(scheduler={"images": 1, "reserved": 0, "waiting": 8}, request_seconds=0.3)
    held = brake(client)
    upload = {"data": {"keep_rows": 1, "class_name": "odd"}, "files": {"image": png(given)}}
    request = client.service.scheduler.submit([Job(label=0, config=SamplingConfig())] * 8, print)
    assert "8 images wait" in error(client.post("/v1/completions", **upload), 429)["message"]
    client.service.scheduler.cancel(request)
    monkeypatch.setattr(client.service, "_uploads", asyncio.Semaphore(0))  # others are being read
    assert "too long" in error(client.post("/v1/completions", **upload), 504)["message"]
    held.release()


def test_an_inpainting_draws_what_is_masked(client, tiny, given):
    mask = np.zeros(given.shape[:2], np.uint8)
    mask[2:4, 2:] = 255
    data = {"n": 2, "seed": 1, "candidates": 3, "class_name": "round"}
    found = images(client.post("/v1/inpaintings", data=data, files={"image": png(given), "mask": png(mask)}))
    expected = tiny.inpaint(given, mask, "round", 2, SamplingConfig(seed=1), candidates=3, output_type="numpy")
    assert same(found, expected)
    for method in ({"method": "plain"}, {"candidates": 3}):
        about = {"n": 2, "seed": 1, "class_name": "round", "keep_pixels": True, **method}
        answer = client.post("/v1/inpaintings", data=about, files={"image": png(given), "mask": png(mask)})
        options = {**method, "keep_pixels": True, "output_type": "numpy"}
        expected = tiny.inpaint(given, mask, "round", 2, SamplingConfig(seed=1), **options)
        assert same(images(answer), expected)
        assert (expected[:, :2] == given[:2]).all()


def test_an_interpolation_goes_from_one_class_to_the_other(client, tiny):
    found = images(client.post("/v1/interpolations", json={"a": "plain", "b": 4, "steps": 4, "seed": 2}))
    assert same(found, tiny.interpolate("plain", 4, 4, SamplingConfig(seed=2), output_type="numpy"))


@pytest.mark.parametrize(
    ("data", "files", "status", "field"),
    [
        ({}, {"image": b"x"}, 422, "keep_rows"),
        ({"keep_rows": 2}, {"image": b"not an image"}, 422, "image"),
        ({"keep_rows": 3}, {"image": b"x"}, 422, "keep_rows"),
        ({"keep_rows": 2, "class_name": "cats"}, {"image": "good"}, 422, "class_name"),
        ({"keep_rows": 2, "temperature": "hot"}, {"image": b"x"}, 422, "temperature"),
        ({"keep_rows": 2, "cfg_start": 0.6, "cfg_end": 0.5}, {"image": "good"}, 422, "cfg_start"),
        ({"keep_rows": 2, "image": "text"}, {}, 415, None),
        ({"keep_rows": 2}, {"image": b"x" * 30_000}, 413, None),
        ({"keep_rows": 2}, {"image": "large"}, 422, "image"),
    ],
)
def test_wrong_uploads_are_refused(make_client, given, data, files, status, field):
    client = make_client(upload_bytes=20_000, upload_pixels=10_000)
    uploads = {"good": png(given), "large": png(np.zeros((200, 200, 3), np.uint8))}
    files = {name: uploads.get(content, content) for name, content in files.items()}
    assert error(client.post("/v1/completions", data=data, files=files), status)["param"] == field


def test_a_cut_upload_and_an_empty_mask_are_refused(client, given):
    cut = client.post("/v1/completions", data={"keep_rows": 1}, files={"image": png(given)[:-40]})
    assert "cannot be read" in error(cut, 422)["message"]
    mask = np.zeros(given.shape[:2], np.uint8)
    empty = client.post("/v1/inpaintings", files={"image": png(given), "mask": png(mask)})
    assert error(empty, 422)["param"] == "mask"

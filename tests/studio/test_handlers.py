"""What the buttons of the page do, without a browser."""

import asyncio
import base64
import io
import json
import math
from contextlib import aclosing

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("gradio", reason="needs the extra 'studio'")

import gradio as gr

from aimamba.data.vocabulary import Vocabulary
from aimamba.generation import SamplingConfig
from aimamba.models.text import TextConfig
from aimamba.pipeline import Pipeline
from aimamba.serve.config import ServeConfig
from aimamba.serve.errors import ApiError
from aimamba.serve.service import Service
from aimamba.studio import controls as settings
from aimamba.studio.actions import IMAGE, SHEET, STRIP, Actions
from aimamba.studio.choice import Choice
from aimamba.studio.frames import read_codes, write_codes
from aimamba.studio.opening import open_image
from aimamba.studio.thumbnails import Thumbnails

VALUES = (1.5, 0.8, 5, 0.9, "", "7", {})
ROCKET, CAT = "a red rocket", "a black cat"
EMPTY = write_codes(torch.zeros(9, dtype=torch.long))


@pytest.fixture
def studio(make_service, monkeypatch):
    """Run something with the handlers of a page, while the service runs and has time for every preview."""
    monkeypatch.setattr("aimamba.generation.scheduler._MOST_CREDIT", math.inf)

    def run(use, **limits):
        async def inside():
            service = make_service(**limits)
            actions = Actions(service, Choice(service))
            async with service.running():
                return await use(service, actions)

        return asyncio.run(inside())

    return run


@pytest.fixture(scope="module")
def reader(make_aim, make_vq):
    """A pipeline that takes prompts."""
    vocabulary = Vocabulary.train([ROCKET, CAT], 280)
    text = TextConfig(tokens=8, vocabulary=len(vocabulary), width=32, blocks=1)
    return Pipeline(make_vq(), make_aim(text=text), ("a", "b", "c", "d", "e"), vocabulary, engine="plain")


async def collect(generator):
    return [frame async for frame in generator]


def final(frames):
    """Return the images of frames, in order."""
    assert frames[-1]["state"] == "done", frames[-1]
    news = [each for frame in frames for each in frame["news"] if "codes" in each]
    return sorted(news, key=lambda each: each["tile"])


def content(news):
    return base64.b64decode(news["src"].partition(",")[2])


def pixels(news):
    return np.asarray(Image.open(io.BytesIO(content(news))))


def test_an_image_grows_and_is_that_of_the_pipeline(studio, tiny):
    frames = studio(lambda _, actions: collect(actions.draw(1, IMAGE, 4, 2, 5, *VALUES)))
    assert {frame["run"] for frame in frames} == {frames[0]["run"]}
    tokens = [each["tokens"] for frame in frames for each in frame["news"]]
    assert tokens == list(range(1, 10))  # one after the other, and none is lost
    [made] = final(frames)
    config = SamplingConfig(cfg_scale=1.5, temperature=0.8, top_k=5, top_p=0.9, seed=7)
    expected = tiny([1], config=config, output_type="numpy")[0]
    assert np.array_equal(pixels(made), expected)
    record = json.loads(Image.open(io.BytesIO(content(made))).info["aimamba"])
    assert (record["class_name"], record["sampling"]["seed"]) == ("spotted, small", 7)
    assert made["name"] == "spotted-small-seed7.png"


def test_a_sheet_a_strip_and_another_seed(studio, tiny):
    async def use(_, actions):
        sheet = await collect(actions.draw(0, SHEET, 4, 2, 5, *VALUES))
        strip = await collect(actions.draw(0, STRIP, 4, 2, 3, *VALUES))
        again = await collect(actions.again(0, IMAGE, 4, 2, 5, *VALUES))
        return sheet, strip, again

    sheet, strip, again = studio(use)
    assert [tile["seed"] for tile in sheet[0]["tiles"]] == ["7", "8", "9", "10"]
    assert len(final(sheet)) == 4
    assert [tile["class"] for tile in strip[0]["tiles"]] == ["plain", "plain", "striped"]
    config = SamplingConfig(cfg_scale=1.5, temperature=0.8, top_k=5, top_p=0.9, seed=7)
    assert np.array_equal(
        np.stack([pixels(each) for each in final(strip)]), tiny.interpolate(0, 2, 3, config, output_type="numpy")
    )
    [seed] = {seed for _, seed in again}
    assert seed != "7"
    assert again[0][0]["tiles"][0]["seed"] == seed


def test_a_part_is_drawn_again(studio):
    async def use(_, actions):
        [first] = final(await collect(actions.draw(1, IMAGE, 4, 2, 5, *VALUES)))
        top = await collect(actions.redraw(1, {"codes": first["codes"], "rows": 2, "n": 4}, *VALUES))
        painted = await collect(actions.redraw(3, {"codes": first["codes"], "mask": [0, 4]}, *VALUES))
        sure = await actions.sureness({"codes": first["codes"], "label": 1})
        return first, top, painted, sure

    first, top, painted, sure = studio(use)
    codes = [np.frombuffer(base64.b64decode(each["codes"]), "<i4") for each in (first, *final(top), *final(painted))]
    assert len(codes) == 6
    assert all(np.array_equal(each[:6], codes[0][:6]) for each in codes[1:5])
    seeds = [int(tile["seed"]) for tile in top[0]["tiles"]]
    assert seeds == list(range(seeds[0], seeds[0] + 4))
    assert 7 not in seeds  # with which the same image would come back
    kept = [index for index in range(9) if index not in (0, 4)]
    assert np.array_equal(codes[5][kept], codes[0][kept])
    record = json.loads(Image.open(io.BytesIO(content(final(painted)[0]))).info["aimamba"])
    assert (record["class_name"], record["edit"]["masked"]) == ("round", [0, 4])
    assert len(sure["probabilities"]) == 9
    assert all(0 <= each <= 1 for each in sure["probabilities"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": 7}, "7"),
        ({"chosen": None}, "None"),
        ({"mode": SHEET, "count": 10}, "10 images are more than the 9"),
        ({"mode": SHEET, "count": "many"}, "The number of images must be a whole number"),
        ({"mode": STRIP, "steps": 1}, "must be 2 or more"),
        ({"mode": STRIP, "to": "zebra"}, "zebra"),
        ({"values": ("a", *VALUES[1:])}, "Cfg-scale must be a number"),
        ({"values": (*VALUES[:3], 0, *VALUES[4:])}, "Top-p must be in"),
        ({"values": (*VALUES[:5], "-1", {})}, "The seed must be a whole number"),
        ({"values": (*VALUES[:5], str(2**63), {})}, "Seed must be in"),
        ({"values": (*VALUES[:6], {"nonsense": 1})}, "unknown key"),
    ],
)
def test_what_is_wrong_is_said_in_one_frame(studio, change, message):
    given = {"chosen": 0, "mode": IMAGE, "count": 4, "to": 1, "steps": 3, "values": VALUES} | change
    *panel, values = given.values()
    [frame] = studio(lambda _, actions: collect(actions.draw(*panel, *values)))
    assert frame["state"] == "error"
    assert message in frame["message"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (None, "does not come from this model"),
        ({"codes": "AAAA", "rows": 1}, "does not come from this model"),
        ({"codes": write_codes(torch.full((9,), 24)), "rows": 1}, "does not come from this model"),
        ({"codes": EMPTY, "rows": 3}, "Keep_rows must be below 3"),
        ({"codes": EMPTY, "rows": 1.5}, "the rows to keep must be a whole number"),
        ({"codes": EMPTY, "mask": []}, "Paint over what shall be drawn again first"),
        ({"codes": EMPTY, "mask": [9]}, "there is no square 9"),
        ({"codes": EMPTY, "mask": [0], "n": 100}, "100 images are more than"),
    ],
)
def test_what_the_page_cannot_redraw_is_refused(studio, asked, message):
    [frame] = studio(lambda _, actions: collect(actions.redraw(0, asked, *VALUES)))
    assert message.lower() in frame["message"].lower()


def test_a_full_queue_and_a_stop_are_told_and_a_visitor_who_leaves_frees_the_place(studio):
    async def use(service, actions):
        full = await collect(actions.draw(0, SHEET, 9, 1, 3, *VALUES))
        async with aclosing(actions.draw(0, IMAGE, 1, 1, 3, *VALUES)) as leaving:
            await anext(leaving)
        for _ in range(1000):
            if not (service.scheduler.running or service.scheduler.waiting):
                break
            await asyncio.sleep(0.01)
        left = service.scheduler.running, service.scheduler.waiting
        service.drain()
        return full[-1], left, (await collect(actions.draw(0, IMAGE, 1, 1, 3, *VALUES)))[-1]

    full, left, closed = studio(use, scheduler={"waiting": 8}, images_per_request=8)
    assert "more than the 8" in full["message"]
    assert left == (0, 0)
    assert closed["message"].startswith("The server is shutting down")


def test_a_file_restores_what_it_was_made_with(studio):
    values = (7.5, 0.8, 0, 1, "", str(2**63 - 1), {"min_p": 0.1, "cfg_schedule": "linear"})  # more than the slider has

    async def use(service, actions):
        choice = actions._choice
        [made] = final(await collect(actions.draw(3, IMAGE, 1, 1, 3, *values)))
        opened = await open_image(service, choice, {"data": made["src"], "name": "a.png"})
        known = await open_image(service, choice, {"data": made["src"], "codes": made["codes"]})
        return made, opened, known

    made, (frame, label, guidance, *_, seed, more), known = studio(use)
    assert frame["state"] == "opened"
    assert frame["message"].startswith("Class, seed and settings restored")
    assert (label, seed, more) == (3, str(2**63 - 1), {"min_p": 0.1, "cfg_schedule": "linear"})
    assert (guidance["value"], guidance["maximum"]) == (7.5, 7.5)
    assert np.array_equal(pixels(frame["news"][0]), pixels(made))
    assert content(frame["news"][0]) == content(made)
    assert known[0]["news"][0]["codes"] == made["codes"]


def test_photos_and_other_files(studio):
    def file(kind, size=(40, 20), **options):
        target = io.BytesIO()
        Image.new("RGB", size, (200, 30, 90)).save(target, kind, **options)
        return "data:;base64," + base64.b64encode(target.getvalue()).decode()

    async def use(service, actions):
        return [
            (await open_image(service, actions._choice, asked))[0]
            for asked in (
                {"data": file("JPEG")}, {"data": "data:;base64,eHl6"}, {"data": "???"}, None,
                {"data": file("PNG", (600, 600))}, {"data": file("BMP", (90, 90))},
            )
        ]  # fmt: skip

    photo, text, rubbish, nothing, large, long = studio(use, upload_pixels=1 << 16, upload_bytes=20_000)
    assert "The model takes it for one of" in photo["message"]
    assert pixels(photo["news"][0]).shape == (6, 6, 3)
    assert photo["tiles"][0]["seed"] is None
    for refused, message in (
        (text, "not an image in a known format"),
        (rubbish, "This is not an image file"),
        (nothing, "not an image"),
        (large, "600 x 600 pixels, more than 65,536"),
        (long, "more than the 20,000 bytes"),
    ):
        assert refused["state"] == "error"
        assert message in refused["message"]


def test_a_file_of_another_model_and_a_damaged_text(studio):
    from aimamba.data.png_text import png_bytes

    async def use(service, actions):
        found = []
        [made] = final(await collect(actions.draw(0, IMAGE, 1, 1, 3, *VALUES)))
        text = Image.open(io.BytesIO(content(made))).info["aimamba"]
        record = json.loads(text)
        other = record | {"model": record["model"] | {"fingerprint": "0" * 64, "model": "mine"}}
        edited = record | {"edit": {"command": "complete", "keep_rows": 2}}
        for each in (other, record | {"class_name": "whales"}, edited, {"class_name": 5}):
            data = png_bytes(Image.new("RGB", (6, 6)), json.dumps(each))
            given = {"data": base64.b64encode(data).decode(), "name": "b.png"}
            found.append(await open_image(service, actions._choice, given))
        return found

    other, unknown, edited, damaged = studio(use)
    assert "It was made by mine" in other[0]["message"]
    assert "no class whales" in unknown[0]["message"]
    assert "keeping the top of another image" in edited[0]["message"]
    assert "cannot be read" in damaged[0]["message"]
    assert damaged[2] == gr.skip()


def test_thumbnails_are_made_once(studio, tmp_path):
    async def use(service, _):
        first = Thumbnails(service, tmp_path)
        assert first.ready == {}
        await first.make()
        (tmp_path / "2.webp").write_bytes(b"damaged")
        second = Thumbnails(service, tmp_path)
        before = dict(second.ready)
        images = service.scheduler.images
        await second.make()
        return first.ready, before, second.ready, service.scheduler.images - images

    first, before, second, made = studio(use)
    assert sorted(first) == [0, 1, 2, 3, 4]
    assert sorted(before) == [0, 1, 3, 4]
    assert (second, made) == (first, 1)
    assert Image.open(io.BytesIO(first[0])).size == (6, 6)


def test_codes_come_back_as_they_went(make_service):
    codes = torch.tensor([[3, 0, 23, 1, 2, 9, 8, 7, 6]])
    assert torch.equal(read_codes(write_codes(codes[0]), make_service()), codes)
    with pytest.raises(ApiError):
        read_codes("é", make_service())


def test_controls_show_every_setting():
    config = SamplingConfig(cfg_scale=0.5, top_p=0.01, negative=2, temperature_end=0.3, seed=4)
    made = settings.make_controls(24)
    updates = settings.show_controls(config, 24)
    assert len(updates) == len(made)
    assert updates[0]["minimum"] == 0.5
    values = [update["value"] if isinstance(update, dict) and "value" in update else update for update in updates]
    assert settings.read_controls(values) == config
    assert all(len(control.info.split(".")) == 2 for control in made[:5])  # one sentence each


def test_a_model_that_reads_has_a_field_in_place_of_the_gallery(reader):
    """Prompts and negative ones, strips, redraws, the map, and a PNG that is dropped back in."""
    values = (2.0, 0.8, 0, 1, "a dog", "3", {})

    async def inside():
        service = Service(reader, "reader", ServeConfig(images_per_request=8))
        actions = Actions(service, Choice(service))
        async with service.running():
            [made] = final(frames := await collect(actions.draw(ROCKET, IMAGE, 1, "", 3, *values)))
            strip = final(await collect(actions.draw(ROCKET, STRIP, 1, CAT, 3, *values)))
            asked = {"codes": made["codes"], "rows": 1}
            [redrawn] = final(await collect(actions.redraw(CAT, asked, *values)))
            sure = [await actions.sureness({"codes": made["codes"], "label": given}) for given in (ROCKET, CAT)]
            opened = await open_image(service, actions._choice, {"data": made["src"], "name": "a.png"})
            [refused] = await collect(actions.draw("x" * 2001, IMAGE, 1, "", 3, *values))
            return frames, made, strip, redrawn, sure, opened, refused

    frames, made, strip, redrawn, sure, opened, refused = asyncio.run(inside())
    config = SamplingConfig(cfg_scale=2.0, temperature=0.8, negative="a dog", seed=3)
    [expected] = reader(prompts=[ROCKET], config=config)
    assert np.array_equal(pixels(made), np.asarray(expected))
    assert frames[0]["tiles"][0] | {"about": ""} == {"label": ROCKET, "class": ROCKET, "seed": "3", "about": ""}
    assert made["name"] == "a-red-rocket-seed3.png"
    assert len(strip) == 3
    kept = reader.encode(pixels(redrawn))[0, :3]
    assert redrawn["name"] != made["name"]  # another seed; the codes may be equal by chance
    assert len(kept) == 3
    assert sure[0] != sure[1]
    frame, prompt, *_, negative, seed, more = opened
    assert (prompt, negative, seed, more) == (ROCKET, "a dog", "3", {})
    assert frame["message"].startswith("Prompt, seed and settings restored")
    assert "at most 2,000 characters" in refused["message"]

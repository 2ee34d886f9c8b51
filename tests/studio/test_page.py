"""The page in a real headless Chromium, with the packaged weights, as a visitor uses it."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="needs the extra 'studio'")

KEY = "a-key-of-sixteen-letters"
SECONDS = 180_000  # milliseconds, on a busy machine


@pytest.fixture(scope="module")
def server(make_server):
    return make_server()


@pytest.fixture
def visit(chromium):
    """Open pages; each may load nothing from elsewhere, and may write no error to the console."""
    contexts, faults = [], []

    def open_page(address, *, wait=True, quiet=True, **settings):
        context = chromium.new_context(**({"viewport": {"width": 1280, "height": 900}} | settings))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SECONDS)
        here = address.split("/studio")[0]
        page.on("request", lambda each: _is_own(each.url, here) or faults.append(f"loads {each.url}"))
        if quiet:
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("console", lambda each: each.type == "error" and faults.append(each.text))
        page.goto(address)
        if wait:
            page.wait_for_selector("#draw")
            page.wait_for_selector(".invitation")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def _is_own(url, here):
    return url.startswith((here, "data:", "blob:"))


def finish(page):
    """Wait until what is being drawn is there."""
    page.wait_for_function("() => !document.body.classList.contains('drawing')")


def draw(page):
    page.click("#draw")
    page.wait_for_selector("body.drawing", state="attached")
    finish(page)


def download(page):
    """Return the file behind the button, and what its metadata say."""
    with page.expect_download() as waiting:
        page.click("text=Download PNG")
    content = Path(waiting.value.path()).read_bytes()
    return content, json.loads(Image.open(io.BytesIO(content)).info["aimamba"]), waiting.value.suggested_filename


def pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def test_a_first_visit_from_the_class_to_the_file_and_back(server, visit):
    page = visit(server.address)
    seen = page.evaluate(
        """() => { window.seen = [];
        new MutationObserver(() => window.seen.push(document.querySelector('.message').textContent))
          .observe(document.querySelector('.message'), { childList: true, characterData: true, subtree: true }); }"""
    )
    page.get_by_role("radio", name="planets", exact=True).click()
    draw(page)
    seen = page.evaluate("() => window.seen")
    tokens = [int(text.split()[1]) for text in seen if text.startswith("Token ")]
    assert len(tokens) > 5  # it could be watched
    assert tokens == sorted(tokens)
    assert tokens[-1] == 64
    content, record, name = download(page)
    assert name == "planets-seed7.png"
    assert (record["class_name"], record["sampling"]["seed"], record["sampling"]["cfg_scale"]) == ("planets", 7, 1.5)

    page.click("#again")  # another seed, which is shown
    page.wait_for_selector("body.drawing", state="attached")
    finish(page)
    other, other_record, _ = download(page)
    assert str(other_record["sampling"]["seed"]) == page.input_value("#seed textarea, #seed input")
    assert not np.array_equal(pixels(content), pixels(other))

    page.get_by_role("radio", name="clay", exact=True).click()
    page.set_input_files(".stage input[type=file]", {"name": "x.png", "mimeType": "image/png", "buffer": content})
    page.wait_for_selector("text=settings restored")
    assert page.get_attribute("[data-label='2']", "aria-checked") == "true"  # planets again
    assert page.input_value("#seed textarea, #seed input") == "7"
    draw(page)
    assert np.array_equal(pixels(download(page)[0]), pixels(content))
    assert page.locator(".past").count() == 3

    page.click("text=How sure was it?")
    page.wait_for_selector(".legend")
    assert page.locator(".heat .cell").count() == 64
    page.hover("[data-cell='9']")
    assert "Row 2, column 2: the model gave this token" in page.inner_text(".readout")


def test_a_part_is_drawn_again(server, visit):
    page = visit(server.address)
    draw(page)
    before = pixels(download(page)[0])
    page.click("text=Redraw a part")
    page.get_by_label("Rows to keep").fill("5")
    page.get_by_role("button", name="Redraw", exact=True).click()
    page.wait_for_selector("body.drawing", state="attached")
    finish(page)
    content, record, _ = download(page)
    assert (record["edit"]["command"], record["edit"]["keep_rows"]) == ("complete", 5)
    assert np.abs(pixels(content)[:24].astype(int) - before[:24]).mean() < 8 < np.abs(
        pixels(content)[48:].astype(int) - before[48:]
    ).mean() + 8  # fmt: skip

    page.click("text=Redraw a part")
    page.get_by_role("radio", name="Paint").click()
    page.get_by_role("button", name="Redraw", exact=True).click()
    assert page.inner_text(".message.bad") == "Paint over what shall be drawn again first."
    box = page.locator(".cells").bounding_box()
    side = box["width"] / 8
    page.mouse.move(box["x"] + 2.5 * side, box["y"] + 3.5 * side)
    page.mouse.down()
    page.mouse.move(box["x"] + 4.5 * side, box["y"] + 3.5 * side, steps=9)
    page.mouse.up()
    page.focus(".cells [data-cell='0']")  # and by keyboard
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    page.get_by_role("button", name="Redraw", exact=True).click()
    page.wait_for_selector("body.drawing", state="attached")
    finish(page)
    record = download(page)[1]
    assert (record["edit"]["command"], record["edit"]["masked"]) == ("inpaint", [1, 26, 27, 28])


def test_a_photo_is_opened_and_a_file_that_is_none_is_refused(server, visit):
    page = visit(server.address)
    file = io.BytesIO()
    Image.new("RGB", (300, 200), (20, 120, 90)).save(file, "JPEG")
    page.set_input_files(
        ".stage input[type=file]", {"name": "p.jpg", "mimeType": "image/jpeg", "buffer": file.getvalue()}
    )
    page.wait_for_selector("text=The model takes it for one of")
    assert page.get_by_role("button", name="Redraw a part").is_visible()
    page.set_input_files(".stage input[type=file]", {"name": "n.png", "mimeType": "image/png", "buffer": b"nothing"})
    page.wait_for_selector(".message.bad")
    assert "this is not an image in a known format" in page.inner_text("[role=alert].message")
    page.fill("#seed textarea, #seed input", "many")
    page.click("#draw")
    page.wait_for_function("() => document.querySelector('.message').textContent.includes('whole number')")
    assert "got 'many'" in page.inner_text(".message.bad")


def test_sheet_strip_keyboard_and_stop(server, visit):
    page = visit(server.address, color_scheme="dark")
    assert page.evaluate("() => document.body.classList.contains('dark')")
    page.focus(".class[aria-checked=true]")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("[data-label='1']", "aria-checked") == "true"
    page.click("#mode >> text=A sheet")
    page.click("#count >> text=4")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("body.drawing", state="attached")
    finish(page)
    assert page.inner_text(".message") == "4 images are done."
    assert page.locator(".tile").count() == 4
    page.locator(".tile").nth(2).click()
    assert download(page)[1]["sampling"]["seed"] == 9
    page.click("text=Back to all")
    page.click("#mode >> text=Between two")
    page.wait_for_selector("#steps")
    draw(page)
    assert page.locator(".tile").count() == 8
    page.click("#mode >> text=A sheet")
    page.click("#count >> text=25")
    page.click("#draw")
    page.wait_for_selector("#stop", state="visible")
    page.keyboard.press("Escape")
    page.wait_for_function("() => document.querySelector('.message').textContent === 'Stopped.'")
    page.click("#mode >> text=One image")
    draw(page)
    assert page.inner_text(".message") == "Done."


def test_it_fits_a_phone(server, visit):
    page = visit(server.address, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    draw(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") == 390
    box = page.locator(".picture").bounding_box()
    assert 320 <= box["width"] <= 390
    small = page.evaluate(
        """() => [...document.querySelectorAll('button, a, input')].filter(each => each.offsetParent &&
        !each.getAttribute('aria-label') && !each.textContent.trim() && !each.labels?.length && !each.title).length"""
    )
    assert small == 0  # everything has a name


def test_it_asks_for_the_key_and_outlives_the_server(make_server, visit):
    server = make_server(key=KEY)
    page = visit(server.address, wait=False, quiet=False)
    page.fill("#key", "not-the-key-of-this-server")
    page.click("button")
    page.wait_for_selector("text=This key is not valid.")
    page.fill("#key", KEY)
    page.click("button")
    page.wait_for_selector("#draw")
    draw(page)
    assert server.stop() == (0, "")  # at once, though the page is open
    page.wait_for_selector("#banner >> text=The server does not answer")
    server.start(key=KEY)
    page.wait_for_selector("text=settings restored")  # the last image is back
    draw(page)
    assert page.inner_text(".message") == "Done."

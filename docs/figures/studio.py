"""Make the pictures of docs/studio.md: ``.venv/bin/python docs/figures/studio.py``.

Starts ``aimamba studio`` with the packaged weights and takes the pictures in a headless Chromium of the system.
"""

import io
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).parent
MOST = 300_000  # bytes of a picture
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def shoot(page: Page, name: str) -> None:
    """Write a picture, in as many colours as fit."""
    image = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
    target = HERE / f"studio-{name}.png"
    image.save(target, optimize=True)
    if target.stat().st_size > MOST:
        image.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)
    print(target.relative_to(HERE.parents[1]), f"{target.stat().st_size:,} bytes")


def visit(browser: Browser, address: str, theme: str, **settings: object) -> Page:
    """Open the page and wait for its thumbnails."""
    page = browser.new_context(**{"viewport": DESKTOP, "color_scheme": theme} | settings).new_page()
    page.goto(address)
    page.wait_for_function("() => document.querySelectorAll('.class img').length === 10", timeout=120_000)
    return page


def choose(page: Page, name: str) -> None:
    """Choose a class."""
    page.get_by_role("radio", name=name, exact=True).click()


def draw(page: Page, name: str | None = None) -> None:
    """Draw an image of a class, or what is chosen."""
    if name is not None:
        choose(page, name)
    page.click("#draw")
    page.wait_for_selector("body.drawing", state="attached")
    page.wait_for_function("() => !document.body.classList.contains('drawing')", timeout=120_000)
    page.mouse.move(5, 500)


def pictures(browser: Browser, address: str) -> None:
    """Take all pictures."""
    page = visit(browser, address, "light")
    for name in ("critters", "voxel-bot", "landscape", "clay", "sprouts"):
        draw(page, name)
    shoot(page, "light")
    draw(page, "planets")
    page.click("text=Redraw a part")
    page.get_by_role("radio", name="Paint").click()
    box = page.locator(".cells").bounding_box()
    assert box is not None
    side = box["width"] / 8
    for row in (3, 4):
        page.mouse.move(box["x"] + 2.5 * side, box["y"] + (row + 0.5) * side)
        page.mouse.down()
        page.mouse.move(box["x"] + 5.5 * side, box["y"] + (row + 0.5) * side, steps=12)
        page.mouse.up()
    shoot(page, "redraw")
    page.click("#mode >> text=A sheet")
    page.wait_for_selector("#count")
    choose(page, "open-peeps")
    page.click("#draw")
    page.wait_for_selector(".tile", timeout=120_000)
    page.wait_for_function("() => parseFloat(document.querySelector('.bar i').style.width) > 40", timeout=120_000)
    shoot(page, "sheet")

    page = visit(browser, address, "dark")
    draw(page, "planets")
    page.click("text=How sure was it?")
    page.wait_for_selector(".legend")
    page.hover("[data-cell='27']")
    shoot(page, "heat")
    page.click("#mode >> text=Between two")
    page.wait_for_selector("#steps")
    draw(page)
    shoot(page, "strip")

    page = visit(browser, address, "light", viewport=PHONE, is_mobile=True, has_touch=True, device_scale_factor=2)
    draw(page, "sprouts")
    shoot(page, "phone")


def main() -> None:
    """Start a server, take the pictures, and end it."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("there is no Chromium; install it: apt-get install chromium")
    command = [sys.executable, "-m", "aimamba", "studio", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        server.stdout.readline()
        address = server.stdout.readline().split(" at ")[1].strip()
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            pictures(browser, address)
            browser.close()
    finally:
        server.terminate()
        server.wait(60)


if __name__ == "__main__":
    main()

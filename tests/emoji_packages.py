"""Small packages in the layout of those that hold emoji."""

import base64
import hashlib
import io
import json
import tarfile
from dataclasses import replace

from PIL import Image

from aimamba.data import emoji

CODES = [f"1f{number:03x}" for number in range(0x400, 0x450)]  # 80 animals
TONES = ["1f3fb", "1f3ff"]
HAND = "1f44b"


def tar(members):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def _names():
    entries = [
        {"hexcode": code.upper(), "label": f"animal {code}", "tags": ["zoo", f"pet {code}"], "group": 3, "subgroup": 34}
        for code in CODES
    ]
    skins = [{"hexcode": f"{HAND}-{tone}".upper(), "label": f"hand: tone {tone}"} for tone in TONES]
    entries[CODES.index(HAND)] |= {"label": "hand", "tags": ["wave"], "skins": skins}
    man = {"hexcode": f"1F468-200D-{CODES[0].upper()}", "label": "man rider", "group": 1}
    woman = {"hexcode": f"1F469-200D-{CODES[0].upper()}-FE0F", "label": "woman rider", "group": 1}
    return [*entries, man, woman, {"hexcode": "1F9B0", "label": "red hair", "group": 2}, {"hexcode": "1F1E6"}]


def _pictures():
    codes = [*CODES, *(f"{HAND}-{tone}" for tone in TONES), f"1f468-200d-{CODES[0]}", f"1f469-200d-{CODES[0]}-fe0f"]
    return [*codes, "1f9b0", "1faff"]  # a component, and one without a name


def _icons(red):
    body = '<path d="M0 0H{0}V20H0z" fill="#{1:02x}{2:02x}00"/>'
    codes = _pictures()
    icons = {f"icon-{code}": {"body": body.format(10, red, number)} for number, code in enumerate(codes)}
    icons[f"icon-{codes[1]}"] = {"body": body.format(20, red, 255), "height": 40}
    icons["hidden"] = {"body": "", "hidden": True}
    files = {
        "icons.json": {"prefix": "x", "icons": icons, "width": 20, "height": 20},
        "chars.json": {code: f"icon-{code}" for code in codes},
    }
    return {name: json.dumps(value).encode() for name, value in files.items()}


def _webp(number):
    content = io.BytesIO()
    Image.new("RGBA", (16, 16), (0, number, 255, 255)).save(content, "WEBP", lossless=True)
    return content.getvalue()


def _contents():
    images = {f"assets/{code.replace('1f469-', '1f469_')}.webp": _webp(n) for n, code in enumerate(_pictures())}
    return {
        emoji.NAMES_PACKAGE.name: tar({"README.md": b"-", "en/data.json": json.dumps(_names()).encode()}),
        "@iconify-json/noto": tar(_icons(200)),
        "@iconify-json/fluent-emoji-flat": tar(_icons(100)),
        "@lobehub/fluent-emoji-3d": tar(images),
    }


def use_small_packages(monkeypatch, folder):
    """Put small packages into a folder of files, and let them be the ones that are looked for."""
    contents = _contents()
    folder.mkdir(parents=True)

    def small(package):
        content = contents[package.name]
        sha512 = base64.b64encode(hashlib.sha512(content).digest()).decode()
        (folder / package.file_names[0]).write_bytes(content)
        return replace(package, size=len(content), sha512=sha512)

    monkeypatch.setattr(emoji, "NAMES_PACKAGE", small(emoji.NAMES_PACKAGE))
    monkeypatch.setattr(emoji, "DESIGNS", {design: small(package) for design, package in emoji.DESIGNS.items()})
    return folder

"""Build the documentation site: ``python docs/site/build.py`` (``make docs``).

The pages are those that ``zensical.toml`` names. They are copied to ``build/pages`` in the arrangement of the
repository, with every file that they link to, so relative links and figures hold on GitHub and on the site alike. Pages
that only the site has are made here: the reference from docstrings and from ``--help``, notebooks as pages. Zensical
builds ``build/site``; then every link, anchor and picture of the HTML is checked.
"""

import argparse
import base64
import functools
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import aimamba
from aimamba.cli import COMMANDS
from aimamba.cli.arguments import Parser

try:
    from latex2mathml import converter as latex2mathml
except ImportError:  # without the extra docs pages are written, and the site is not built
    latex2mathml = None

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "build" / "pages"
SITE = ROOT / "build" / "site"
CONFIG = ROOT / "zensical.toml"
LOOKS = tuple(Path(__file__).with_name(name) for name in ("site.css", "logo.svg"))

CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r'(?P<before>\]\(|\b(?:src|href)=")(?P<path>[^)\s"#]+)(?=[)\s"#])')
NESTED = re.compile(r"^ {2,3}(?=[-*] )", re.MULTILINE)
LIST = re.compile(r"^([^-*#>|\s\d].*)\n(?=[-*] )", re.MULTILINE)  # a list that begins right after a line of text
MATH = re.compile(r"\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\s][^$]*)\$", re.DOTALL)


class SiteError(Exception):
    """A link that leads nowhere, or a page that is not in the navigation."""


def navigation(config: Path = CONFIG) -> list[str]:
    """Return the pages of the navigation, in order, as paths from the root of the repository."""

    def leaves(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict | list):
            for part in entry.values() if isinstance(entry, dict) else entry:
                yield from leaves(part)

    return list(leaves(tomllib.loads(config.read_text(encoding="utf-8"))["project"]["nav"]))


def stage(pages: list[str], out: Path = PAGES) -> None:
    """Write the pages, and the files that they link to, to a new folder.

    Raises:
        SiteError: A page does not exist, or a link leads nowhere or to a page that is not in the navigation.
    """
    shutil.rmtree(out, ignore_errors=True)
    for page in pages:
        place = out / page
        place.parent.mkdir(parents=True, exist_ok=True)
        source = ROOT / page
        if page in GENERATED:
            text = GENERATED[page]()
        elif source.exists():
            text = _for_site(source.read_text(encoding="utf-8"))
        elif source.with_suffix(".ipynb").exists():
            text = notebook_page(source.with_suffix(".ipynb"), place.parent)
        else:
            raise SiteError(f"zensical.toml names {page}, which does not exist")
        place.write_text(_with_links(text, page, pages, out), encoding="utf-8")
    for path in LOOKS:
        shutil.copy(path, out)


def _for_site(text: str) -> str:
    """Return a page with what Python-Markdown reads otherwise than GitHub: info strings, where a list begins."""
    text = re.sub(r"^(```\w+)[^\n]*$", r"\1", text, flags=re.MULTILINE)
    text = _outside_code(lambda part: NESTED.sub("    ", part), text)
    return _outside_code(lambda part: LIST.sub(r"\1\n\n", part), text)


def _outside_code(change: Callable[[str], str], text: str) -> str:
    return "".join(part if i % 2 else change(part) for i, part in enumerate(CODE.split(text)))


def _with_links(text: str, page: str, pages: list[str], out: Path) -> str:
    """Return a page's text with links as the site needs them; copy the files that they lead to."""
    here = Path(page).parent

    def lead(found: re.Match[str]) -> str:
        target = found["path"]
        if urlsplit(target).scheme:
            return found[0]
        place = Path(os.path.normpath(here / unquote(target)))
        named = (place / "README.md" if (ROOT / place).is_dir() else place).as_posix()
        if place.suffix == ".ipynb" and Path(page).stem != place.stem:
            named = place.with_suffix(".md").as_posix()
        if named in pages:
            return found["before"] + os.path.relpath(named, here)
        if (ROOT / place).is_dir():
            return found["before"] + os.path.relpath(_list(place, out), here)
        if place.suffix == ".md":
            raise SiteError(f"{page} links to {target}, which is not in the navigation of zensical.toml")
        if not (ROOT / place).is_file() and not (out / place).is_file():
            raise SiteError(f"{page} links to {target}, which does not exist")
        if not (out / place).exists():
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / place, out / place)
        return found[0]

    return _outside_code(lambda part: LINK.sub(lead, part), text)


def _list(folder: Path, out: Path) -> str:
    """Copy the files of a folder and write a page that lists them; return the page's path."""
    files = sorted(path for path in (ROOT / folder).iterdir() if path.is_file())
    (out / folder).mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copy(path, out / folder)
    lines = [f"- [{path.name}]({path.name})" for path in files]
    (out / folder / "README.md").write_text("\n".join([f"# {folder.as_posix()}", "", *lines, ""]), encoding="utf-8")
    return f"{folder.as_posix()}/README.md"


def notebook_page(notebook: Path, out: Path) -> str:
    """Return a notebook as Markdown; its pictures are written beside the page."""
    parts = [f"[Download this notebook]({notebook.name})\n"]
    for number, cell in enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(_outside_code(lambda part: MATH.sub(_mathml, part), _for_site(source)))
            continue
        parts.append(f"```python\n{source}\n```")
        for index, output in enumerate(cell["outputs"]):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{notebook.stem}-{number}-{index}.png"
                (out / name).write_bytes(base64.b64decode(data["image/png"]))
                parts.append(f"![Output of the code above]({name})")
            elif text := "".join(output.get("text", data.get("text/plain", ""))):
                parts.append(f"```text\n{text.rstrip()}\n```")
    shutil.copy(notebook, out)
    title = parts.pop(1)
    return "\n\n".join([title, *parts, ""])


def _mathml(found: re.Match[str]) -> str:
    """Return a formula of TeX as MathML, which browsers show by themselves."""
    if latex2mathml is None:
        return found[0]
    formula = latex2mathml.convert(" ".join((found["block"] or found["inline"]).split()))
    if found["block"] is None:  # in a span, as a formula at the start of a paragraph would end it
        return f"<span>{formula}</span>"
    return f'\n\n<div class="formula">{formula.replace("inline", "block", 1)}</div>\n\n'


def python_page() -> str:
    """Return the reference of the public names, by the module that they come from."""
    homes: dict[str, list[str]] = {}
    for name in aimamba.__all__:
        homes.setdefault(aimamba._HOMES[name], []).append(name)
    lines = [
        "# Python",
        "",
        "What `import aimamba` offers. Shapes in annotations are jaxtyping's: `b` is the batch.",
        "",
    ]
    for home in sorted(homes, key=lambda name: ("errors" in name, name != "aimamba.pipeline", name)):
        lines += [f"## {home}", ""]
        for name in homes[home]:
            lines += [f"::: aimamba.{name}", ""]
    return "\n".join(lines)


def commands_page() -> str:
    """Return the reference of the command line: the help of every command."""
    wide = functools.partial(argparse.RawDescriptionHelpFormatter, width=100)
    lines = ["# Command line", "", "`aimamba help COMMAND` prints each of these.", ""]
    for name, purpose in COMMANDS.items():
        command = importlib.import_module(f"aimamba.cli.{name.replace('-', '_')}")
        parser = Parser(prog=f"aimamba {name}", description=command.__doc__)
        parser.formatter_class = wide
        command.add_arguments(parser)
        lines += [f"## aimamba {name}", "", f"{purpose[0].upper()}{purpose[1:]}.", ""]
        lines += ["```text", parser.format_help().rstrip(), "```", ""]
    return "\n".join(lines)


GENERATED: dict[str, Callable[[], str]] = {
    "docs/reference/python.md": python_page,
    "docs/reference/commands.md": commands_page,
}


class _Page(HTMLParser):
    """What a page of the site holds: anchors, links, and the addresses that a browser loads by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        values = {name: value for name, value in attrs if value is not None}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        loads = tag != "a" and values.get("rel") not in ("canonical", "prev", "next")
        for address in (values[name] for name in ("href", "src") if name in values):
            (self.loaded if loads else self.links).append(address)


def faults(site: Path = SITE) -> list[str]:
    """Return every link, anchor and picture of a built site that leads nowhere, and what is loaded from elsewhere."""
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        found += [f"{name} loads {address}" for address in page.loaded if urlsplit(address).netloc]
        if name == "404.html":  # its addresses are those of a site at the root of a host
            continue
        for address in page.links + page.loaded:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                found.append(f"{name} leads to {address}, which does not exist")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{name} leads to {address}, which has no such anchor")
    return found


def main() -> None:
    """Write the pages, build the site and check it."""
    try:
        stage(navigation())
        shutil.rmtree(SITE, ignore_errors=True)
        subprocess.run(
            [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "--config-file", str(CONFIG)],
            cwd=ROOT,
            check=True,
        )
        if broken := faults():
            raise SiteError("\n".join(broken))
    except (SiteError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"the site was not built: {error}") from None
    print(f"open {SITE.relative_to(ROOT) / 'index.html'}")


if __name__ == "__main__":
    main()

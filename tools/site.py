"""The pages as mkdocs wants them: a hook of `mkdocs.yml`.

The pages are written to be read in a checkout, where a link may lead to any file. On the site a file outside `docs`
that is linked to is a page of its own, under `repository/`: Markdown as it is, all else as code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
#: What stands between a link's text and the end of its target.
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
_MARKER = re.compile(r"^<!-- [\w-]+:(?:begin|end) -->\n?", re.MULTILINE)
_LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".cff": "yaml"}


def place(path: Path) -> str:
    """Where a file of the repository lies on the site, as a path below `docs`."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    inside = path.relative_to(ROOT).as_posix()
    return f"repository/{inside}" if path.suffix == ".md" else f"repository/{inside}.md"


def origin(uri: str) -> Path:
    """The file of the repository that is a page of the site."""
    if not uri.startswith("repository/"):
        return DOCS / uri
    inside = ROOT / uri.removeprefix("repository/")
    return inside if inside.is_file() else inside.with_suffix("")


def targets(page: Path) -> Iterator[Path]:
    """The files that a page links to."""
    for found in LINK.finditer(page.read_text(encoding="utf-8")):
        path = (page.parent / found[1]).resolve()
        if path.is_file():
            yield path


def outside() -> list[Path]:
    """The files outside `docs` that can be reached from it by links, in their order."""
    ahead, found = sorted(DOCS.rglob("*.md")), set[Path]()
    while ahead:
        new = [path for path in targets(ahead.pop()) if not path.is_relative_to(DOCS) and path not in found]
        found |= set(new)
        ahead += [path for path in new if path.suffix == ".md"]
    return sorted(found)


def content(path: Path) -> str:
    """The page of a file outside `docs`."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    name = path.relative_to(ROOT).as_posix()
    return f"# {name}\n\n````{_LANGUAGES.get(path.suffix, 'text')}\n{text}````\n"


def relinked(text: str, uri: str) -> str:
    """The text of the page at `uri` with its links to files as the site has them."""
    here = origin(uri).parent

    def link(found: re.Match[str]) -> str:
        path = (here / found[1]).resolve()
        if not (path.is_file() and path.is_relative_to(ROOT)):
            return found[0]
        return os.path.relpath(place(path), Path(uri).parent.as_posix()) + (found[2] or "")

    return LINK.sub(link, text)


def on_files(files: Files, config: Any) -> Files:
    """Add what is outside `docs` and is linked to, and the style."""
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    files.append(File.generated(config, "stylesheets/site.css", content=style))
    for path in outside():
        files.append(File.generated(config, place(path), content=content(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page's text: links of the site, sessions with prompts highlighted as such, no marks of generated tables."""
    uri = page.file.src_uri
    text = markdown if uri.endswith(".py.md") else relinked(markdown, uri)
    return _MARKER.sub("\n", text.replace("```python\n>>>", "```pycon\n>>>"))

"""Pages of the site that are no files of docs/, and links that lead out of it (mkdocs hooks).

    README.md ─────────▶ index.md         docs/x.md in it becomes x.md
    bench/README.md ───▶ bench.md
    CHANGELOG.md, .github/CONTRIBUTING.md ─▶ changelog.md, contributing.md
    docs/reference.py ─▶ api.md           what is public, as mkdocstrings shows it
    ../csrc/x.c ───────▶ its text alone: the site has no sources

The rest of a page is left as it is: what GitHub shows and what the site shows are the same text.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

DOCS = Path(__file__).resolve().parents[1]
HOUSE = DOCS.parent
ELSEWHERE = {
    "README.md": "index.md",
    "bench/README.md": "bench.md",
    "CHANGELOG.md": "changelog.md",
    ".github/CONTRIBUTING.md": "contributing.md",
}
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie elsewhere."""
    for source, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(HOUSE / source).read_text()))
    files.append(File.generated(config, "api.md", content=_api()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to the pages of the site."""
    here = next((s for s, p in ELSEWHERE.items() if p == page.file.src_uri), None)
    folder = HOUSE / here if here else DOCS / page.file.src_uri
    start = os.path.dirname(page.file.src_uri)

    def moved(found: re.Match[str]) -> str:
        text, target, anchor = found.groups()
        if "://" in target:
            return found[0]
        path = (folder.parent / target).resolve()
        inside = path.relative_to(HOUSE).as_posix() if path.is_relative_to(HOUSE) else ""
        if not path.exists():
            return found[0]  # mkdocs says so
        if inside in ELSEWHERE:
            uri = ELSEWHERE[inside]
        elif path.is_relative_to(DOCS):
            uri = path.relative_to(DOCS).as_posix()
        else:
            return text if text.startswith("`") else f"`{inside}`"
        return f"[{text}]({os.path.relpath(uri, start or '.')}{anchor or ''})"

    return _LINK.sub(moved, markdown)


def _api() -> str:
    sys.path.insert(0, str(DOCS))
    import reference

    chapters: dict[str, list[str]] = {}
    for _, thing in reference.things():
        line = f"::: {thing.__module__}.{thing.__qualname__}"
        lines = chapters.setdefault(reference.chapter_of(thing), [])
        if line not in lines:
            lines.append(line)
    parts = ["# Names, with types\n"]
    for title in dict.fromkeys([*reference.CHAPTERS.values(), *chapters]):
        parts += [f"\n## {title}\n", *(f"{line}\n" for line in chapters.get(title, ()))]
    return "\n".join(parts)

"""Folds the fragments of changelog.d/ into CHANGELOG.md: python .github/changelog.py [--release]

The section of the version in pyproject.toml is made anew from the fragments each time, breaking
changes first, then features, then fixes, each in the order of its issue. Until the release the
fragments stay, and the section says "unreleased"; --release gives it today's date and removes them.
"""

from __future__ import annotations

import datetime
import re
import sys
import textwrap
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHANGELOG = HERE.parent / "CHANGELOG.md"
KINDS = {"breaking": "Breaking", "feature": "New", "fix": "Mended"}


def section(version: str, when: str) -> str:
    """The text of one version."""
    parts = [f"## {version} ({when})\n"]
    for kind, title in KINDS.items():
        fragments = sorted(HERE.glob(f"changelog.d/*.{kind}.md"))
        if fragments:
            parts.append(f"### {title}\n")
            parts += [item(path.read_text()) for path in fragments]
            parts.append("")
    return "\n".join(parts)


def item(text: str) -> str:
    """A fragment as an item of a list; its own lists become items of one below."""
    blocks: list[str] = []
    for block in re.split(r"\n\s*\n|\n(?=- )", text.strip()):
        mark = "- " if not blocks else "  - " if block.startswith("- ") else "  "
        words = " ".join(block.removeprefix("- ").split())
        later = " " * (2 if mark == "- " else len(mark))
        blocks.append(textwrap.fill(
            words, 100, initial_indent=mark, subsequent_indent=later,
            break_long_words=False, break_on_hyphens=False,
        ))  # fmt: skip
    return "\n".join(blocks)


def folded(text: str, version: str, when: str) -> str:
    """The changelog with that section in the place of the one it had, or before all others."""
    ours = re.compile(rf"^## {re.escape(version)} .*?(?=^## |\Z)", re.M | re.S)
    new = section(version, when) + "\n"
    if ours.search(text):
        return ours.sub(lambda _: new, text, count=1)
    at = text.find("\n## ") + 1
    return text[:at] + new + text[at:]


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--release"]):
        print(__doc__)
        return 2
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    when = datetime.date.today().isoformat() if arguments else "unreleased"
    CHANGELOG.write_text(folded(CHANGELOG.read_text(), project["version"], when).rstrip() + "\n")
    if arguments:
        for path in HERE.glob("changelog.d/*.*.md"):
            path.unlink()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""Links of the Markdown files: each names a file that is there, and a heading of it."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.docs.api_page import REPOSITORY
from tests.docs.markdown import anchor

_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"(?<!\\)\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)[^)]*\)")
_HEADING = re.compile(r"^#{1,6} (.*?)\s*#*$", re.MULTILINE)
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:")


def broken_links() -> Iterator[str]:
    """A line for each link that leads nowhere. Addresses of other machines are not asked."""
    for path in markdown_files():
        text = _CODE.sub("", _FENCE.sub("", path.read_text()))
        for target in _LINK.findall(text):
            if not _ELSEWHERE.match(target) and (wrong := _wrong(path, target)):
                yield f"{path.relative_to(REPOSITORY)}: {target}: {wrong}"


def markdown_files() -> list[Path]:
    """Those that are, or will be, in the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    return [path for name in listed.split("\0") if name and (path := REPOSITORY / name).is_file()]


def _wrong(path: Path, target: str) -> str:
    """What is wrong with it; empty if nothing is."""
    name, _, fragment = target.partition("#")
    file = (path.parent / name).resolve() if name else path
    if not file.exists():
        return "there is no such file"
    if not file.is_relative_to(REPOSITORY):
        return "it is outside of the repository"
    if fragment and file.suffix == ".md" and fragment not in _anchors(file):
        return "there is no such heading"
    return ""


@cache
def _anchors(path: Path) -> frozenset[str]:
    """Of all headings; a second one of the same text has a number behind it."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in _HEADING.findall(_FENCE.sub("", path.read_text())):
        name = anchor(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", ""))
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return frozenset(found)

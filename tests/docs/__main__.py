"""`python -m tests.docs`: writes the generated pages; with --check, says what is not as it should
be, links included."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.docs import api_page, cli_page, metrics_page
from tests.docs.links import broken_links


def _metrics_page() -> str:
    """What is written by hand stays; the tables below it are made."""
    return metrics_page.refreshed(_path("docs/metrics.md").read_text())


PAGES: dict[str, Callable[[], str]] = {
    "docs/cli.md": cli_page.page,
    "docs/api.md": api_page.page,
    "docs/metrics.md": _metrics_page,
}


def stale_pages() -> Iterator[str]:
    """A line for each page that is not what would be generated."""
    for name, page in PAGES.items():
        path = _path(name)
        if not path.exists() or path.read_text() != page():
            yield f"{name} is not what its source generates: run make docs"


def _path(name: str) -> Path:
    return api_page.REPOSITORY / name


def main() -> int:
    if sys.argv[1:] == ["--check"]:
        wrong = [*stale_pages(), *broken_links()]
        sys.stderr.writelines(f"{line}\n" for line in wrong)
        return bool(wrong)
    for name, page in PAGES.items():
        _path(name).write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Pages of the site that are files elsewhere in the repository: the README, reports, and tutorials.

Links everywhere are those that work in the repository; here they become links of the site.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CITATION.cff": "CITATION.cff",
    "LICENSE": "LICENSE.txt",
}
RESULTS, TUTORIALS = "benchmarks/results", "tutorials"
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(?=[)#])")


def on_files(files: Files, config: Any) -> Files:
    """Add what is not in docs/."""
    for path, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    for path in sorted((ROOT / RESULTS).rglob("*")):
        if path.suffix in (".md", ".png", ".json"):
            name = path.relative_to(ROOT / RESULTS).as_posix()
            files.append(File.generated(config, f"results/{name}", abs_src_path=str(path)))
    for path in sorted((ROOT / TUTORIALS).glob("*.py")):
        notebook = jupytext.read(path)
        files.append(File.generated(config, f"tutorials/{path.stem}.ipynb", content=jupytext.writes(notebook, "ipynb")))
        files.append(File.generated(config, f"tutorials/{path.stem}.md", content="".join(_page(path.stem, notebook))))
    return files


def _page(name: str, notebook: Any) -> Iterator[str]:
    for number, cell in enumerate(notebook.cells):
        yield cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```"
        yield "\n\n"
        if number == 0:
            yield f"*A tutorial to run: [as a notebook]({name}.ipynb), or `python {TUTORIALS}/{name}.py`.*\n\n"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links of the repository into links of the site."""
    uri = page.file.src_uri
    source = next((path for path, known in PAGES.items() if known == uri), None)
    if source is None:
        folder, _, name = uri.partition("/")
        source = f"{RESULTS}/{name}" if folder == "results" else uri if folder == TUTORIALS else f"docs/{uri}"

    def site_link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        return os.path.relpath(_site_path(target), posixpath.dirname(uri) or ".")

    return _LINK.sub(site_link, markdown)


def _site_path(path: str) -> str:
    if path in PAGES:
        return PAGES[path]
    if path.startswith(f"{RESULTS}/"):
        return path.replace(RESULTS, "results", 1)
    if path.startswith(f"{TUTORIALS}/"):
        return re.sub(r"\.py$", ".md", path)
    return path.removeprefix("docs/")

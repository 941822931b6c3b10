"""What `make site` adds to the pages in docs/: the repository's own pages, and links that hold outside of it."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", **{name: name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")}}
"""Pages beside docs/, by what they are called in the site."""
LINK = re.compile(r"(?<!!)\[([^\]\[]*(?:\[[^\]]*\][^\]\[]*)*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_config(config: Any) -> Any:
    """Put every page of a folder where the navigation names the folder."""
    config.nav = [_expanded(entry, Path(config.docs_dir)) for entry in config.nav]
    return config


def _expanded(entry: Any, docs: Path) -> Any:
    if not isinstance(entry, dict):
        return entry
    ((title, inside),) = entry.items()
    if isinstance(inside, str) and inside.endswith("/"):
        pages = sorted((docs / inside).glob("*.md"), key=lambda page: (page.name != "README.md", page.name))
        return {title: [f"{inside}{page.name}" for page in pages]}
    return entry


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie beside docs/."""
    for source, name in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links at pages of the site; of what is not in it, a source file say, leave the name."""
    parts = FENCE.split(markdown)
    known = {one.src_uri for one in files}
    return "".join(part if FENCE.fullmatch(part) else LINK.sub(lambda m: _link(m, page, known), part) for part in parts)


def _link(match: re.Match[str], page: Any, known: set[str]) -> str:
    label, target = match.groups()
    path, hash_, anchor = target.partition("#")
    if not path or "://" in path or path.startswith("mailto:"):
        return match[0]
    # Links are written for the repository, where README.md lies above docs/.
    source = {name: place for place, name in PAGES.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    place = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    name = PAGES.get(place, place.removeprefix("docs/"))
    name = f"{name}/README.md" if f"{name}/README.md" in known else name
    if name not in known:
        return label
    return f"[{label}]({posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or '.')}{hash_}{anchor})"

"""What a demo made: files in a folder, and a contact sheet that shows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

#: The page's name; browsers and people look for this one.
SHEET = "index.html"

_STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;"
    "max-width:64rem;padding:0 1rem}main{display:grid;gap:1rem;"
    "grid-template-columns:repeat(auto-fill,minmax(19rem,1fr))}"
    "article{border:1px solid #8884;border-radius:8px;padding:1rem}h2{font-size:1rem;margin:0}"
    "img{width:100%;image-rendering:pixelated;border-radius:4px}audio{width:100%}"
    "p{white-space:pre-line}small{opacity:.7}"
)

#: How a browser shows a file, by the end of its name.
_SHOWN = {
    ".png": '<img src="{name}" alt="{alt}">',
    ".wav": '<audio controls src="{name}"></audio>',
}


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One thing that was made: what was asked, what came of it, who served it, and files."""

    title: str
    asked: str
    answer: str
    node: str
    files: dict[str, bytes] = field(default_factory=dict)


def sheet(exhibits: list[Exhibit], title: str) -> str:
    """Return the contact sheet: a page of its own, without a script or another host."""
    articles = "".join(map(_article, exhibits))
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1><main>{articles}</main></html>\n"
    )


def _article(exhibit: Exhibit) -> str:
    shown = "".join(
        _SHOWN[Path(name).suffix].format(name=escape(name), alt=escape(exhibit.asked))
        for name in exhibit.files
    )
    return (
        f"<article><h2>{escape(exhibit.title)}</h2><p><em>{escape(exhibit.asked)}</em></p>{shown}"
        f"<p>{escape(exhibit.answer)}</p><small>{escape(exhibit.node)}</small></article>"
    )


def write(exhibits: list[Exhibit], folder: Path, title: str) -> Path:
    """Write all files and the contact sheet into a folder; return the sheet's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for exhibit in exhibits:
        for name, content in exhibit.files.items():
            (folder / name).write_bytes(content)
    path = folder / SHEET
    path.write_text(sheet(exhibits, title), encoding="utf-8")
    return path

"""A page of HTML that needs nothing but itself: sections of facts, tables, figures and pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from ..data.pictures import read_rgb

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        text: What it says.
        important: Whether it stands out.
    """

    form: ClassVar[str] = "text"
    text: str
    important: bool = False


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    form: ClassVar[str] = "facts"
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        headings: One for each column; the first column's cells are headings of the rows.
        rows: Cells.
        title: Shown above; a folded table shows it alone.
        folded: Whether it opens on a click; it is printed as it is.
        words: Whether the cells are words and no numbers.
    """

    form: ClassVar[str] = "table"
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    folded: bool = False
    words: bool = False


@dataclass(frozen=True)
class Drawing:
    """A figure or picture.

    Attributes:
        source: As a data URI.
        caption: What there is to see.
        small: Several small ones stand in a row.
        chart: It has text in it: it is not made so small that nobody could read it.
    """

    form: ClassVar[str] = "drawing"
    source: str
    caption: str
    small: bool = False
    chart: bool = False


Block = Text | Facts | Table | Drawing


@dataclass
class Section:
    """A chapter of the page."""

    title: str
    blocks: list[Block] = field(default_factory=list)


def drawing(figure: Figure, caption: str, *, small: bool = False) -> Drawing:
    """A figure of matplotlib as SVG; its text stays text."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "qsam2", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    return Drawing(_uri("image/svg+xml", buffer.getvalue()), caption, small, chart=True)


def picture(image: Image.Image, caption: str) -> Drawing:
    """A picture, at most 1600 pixels wide."""
    if image.width > 1600:
        image = image.resize((1600, round(image.height * 1600 / image.width)))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=88)
    return Drawing(_uri("image/jpeg", buffer.getvalue()), caption)


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def render(title: str, sections: Sequence[Section], made: str) -> str:
    """The page.

    Args:
        title: Its heading.
        sections: In order.
        made: Who made it from what, at the bottom.

    Returns:
        HTML. Everything in it that comes from files is escaped, and it has no script.

    Example:
        >>> "<h1>a &lt;b&gt;</h1>" in render("a <b>", [Section("s", [Text("t")])], "")
        True
    """
    environment = Environment(
        loader=PackageLoader("qsam2_ao.html_report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(title=title, sections=sections, made=made)


def read_picture(path: Path) -> Image.Image:
    """A picture that a command of ours wrote.

    Raises:
        DataError: It is damaged, or too large.
    """
    return Image.fromarray(read_rgb(path))

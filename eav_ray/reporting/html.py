"""Pages that need no other file: sections of texts, tables and figures, which templates turn into HTML.

No other module knows HTML.
"""

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib import rc_context
from matplotlib.figure import Figure

from eav_ray.reporting import formatting
from eav_ray.reporting.formatting import MISSING, Format, apply_format
from eav_ray.words import format_recordings

Column = tuple[str, str, Format]  # of a table: its heading, and the key and format of its value in an entry


@dataclass(frozen=True)
class Note:
    """A paragraph of explanation."""

    kind: ClassVar = "note"
    text: str


@dataclass(frozen=True)
class Command:
    """A command to be copied."""

    kind: ClassVar = "command"
    text: str


@dataclass(frozen=True)
class Table:
    """A table of text, which a click on a heading sorts."""

    kind: ClassVar = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: bool = False  # aligned to the left and wrapped, as prose is
    title: str = ""


@dataclass(frozen=True)
class Drawing:
    """A figure as a drawing.

    Attributes:
        caption: Says what it shows, also to readers who cannot see it.
    """

    kind: ClassVar = "drawing"
    figure: Figure
    caption: str

    @property
    def svg(self) -> str:
        sink = io.StringIO()
        # Text stays text; equal figures, equal pages.
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "eav-ray"}):
            self.figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
        svg = sink.getvalue()
        return svg[svg.index("<svg") :]


@dataclass(frozen=True)
class Picture:
    """A figure as pixels, for one that has too many parts for a drawing.

    Attributes:
        caption: Says what it shows, also to readers who cannot see it.
    """

    kind: ClassVar = "picture"
    figure: Figure
    caption: str

    @property
    def url(self) -> str:
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=110)
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass(frozen=True)
class Folded:
    """A part that opens by a click."""

    kind: ClassVar = "folded"
    summary: str
    part: "Part"


Part = str | Note | Command | Table | Drawing | Picture | Folded  # a text alone is a paragraph


@dataclass(frozen=True)
class Section:
    title: str
    parts: Sequence[Part]

    @property
    def anchor(self) -> str:
        """Name the section in links."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def build_table(
    entries: Iterable[Mapping[Any, Any]],
    columns: Sequence[Column],
    *,
    left: bool = False,
    title: str = "",
    missing: str = MISSING,
) -> Table:
    """Build a table with one row an entry.

    Args:
        missing: Stands for values that an entry does not have.
    """
    rows = []
    for entry in entries:
        values = [(entry.get(key), form) for _, key, form in columns]
        rows.append([missing if value is None else apply_format(value, form) for value, form in values])
    return Table([heading for heading, _, _ in columns], rows, left, title)


TEMPLATES = Environment(
    loader=PackageLoader("eav_ray.reporting"),
    autoescape=select_autoescape(["html.jinja"]),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render_template(name: str, /, **values: Any) -> str:
    """Render a template of `eav_ray/reporting/templates`, which has the functions of `formatting`, and counts."""
    return TEMPLATES.get_template(name).render(vars(formatting), format_recordings=format_recordings, **values)


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        headline: The result in one sentence.
        contents: Whether links to the sections come before them.
    """

    title: str
    sections: Sequence[Section]
    heading: str = ""
    headline: str = ""
    introduction: str = ""
    contents: bool = False

    def render(self) -> str:
        return render_template("page.html.jinja", page=self)

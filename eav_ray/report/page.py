"""Parts of HTML pages that need no other file."""

import html
import io
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; margin: .5rem 0 }} td, th {{ padding: .15rem .7rem; text-align: right }}
td:first-child, th:first-child {{ text-align: left }} tr:nth-child(even) {{ background: #f4f4f4 }}
th {{ border-bottom: 1px solid #999 }} img, svg {{ max-width: 100%; height: auto }} .left td {{ text-align: left }}
.wide {{ overflow-x: auto }} figure {{ margin: .5rem 0 }}
</style></head><body>
{body}
</body></html>
"""


def document(title: str, parts: Sequence[str]) -> str:
    return PAGE.format(title=html.escape(title), body="\n".join(parts))


def section(title: str, *parts: str) -> str:
    return f"<h2>{html.escape(title)}</h2>\n" + "\n".join(parts)


def table(head: Sequence[str], body: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table of text."""
    top = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>\n" for row in body)
    return f'<div class="wide"><table class="{kind}"><tr>{top}</tr>\n{lines}</table></div>'


def figure_svg(figure: Figure, text: str) -> str:
    """A figure as a drawing in the page.

    Args:
        text: What it shows, for who cannot see it.
    """
    sink = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "eav-ray"}):  # text stays text; equal figures, equal pages
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    drawn = sink.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    alternative = html.escape(text, quote=True)
    return f'<figure role="img" aria-label="{alternative}">{drawn}<figcaption>{html.escape(text)}</figcaption></figure>'

"""Parts of HTML pages that need no other file."""

import html
import io
import re
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

PAGE_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{title}</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 74rem; margin: 2rem auto; padding: 0 1rem; color: #222;
  overflow-wrap: anywhere }}
table {{ border-collapse: collapse; margin: .5rem 0; overflow-wrap: normal }}
td, th {{ padding: .15rem .7rem; text-align: right }}
td:first-child, th:first-child {{ text-align: left; position: sticky; left: 0; background: inherit }}
tr {{ background: #fff }} tbody tr:nth-child(odd) {{ background: #f4f4f4 }}
th {{ border-bottom: 1px solid #999; vertical-align: bottom }} .left td, .left th {{ text-align: left }}
table:not(.left) td {{ white-space: nowrap }}
th button {{ all: unset; cursor: pointer }} th button:focus-visible {{ outline: 2px solid #36c }}
th[aria-sort=ascending] button::after {{ content: " ▴" }} th[aria-sort=descending] button::after {{ content: " ▾" }}
img, svg {{ max-width: 100%; height: auto }} .wide, figure {{ overflow-x: auto }} figure {{ margin: .8rem 0 }}
@media (max-width: 40rem) {{ figure svg {{ max-width: none }} }}
figcaption {{ color: #555; font-size: .9em; max-width: 48rem }}
nav a {{ margin-right: 1rem; white-space: nowrap }} nav {{ line-height: 1.9; border-bottom: 1px solid #ccc }}
pre {{ overflow-x: auto; background: #f4f4f4; padding: .5rem }} h2 {{ margin-top: 2.2rem }}
.note {{ color: #555; max-width: 48rem }} .bad {{ color: #a00 }}
</style></head><body>
{body}
<script>
document.querySelectorAll("table").forEach(table => table.querySelectorAll("th button").forEach((button, column) => {{
  const cell = row => row.cells[column].textContent.trim();
  const number = text => parseFloat(text.replace("−", "-").replace(/,/g, ""));
  button.addEventListener("click", () => {{
    const th = button.parentElement, body = table.tBodies[0], rows = Array.from(body.rows);
    const down = th.getAttribute("aria-sort") === "ascending", sign = down ? -1 : 1;
    const numeric = rows.some(r => !isNaN(number(cell(r))));
    rows.sort((a, b) => {{
      const [x, y] = [cell(a), cell(b)];
      if (!numeric) return sign * x.localeCompare(y, "en", {{ numeric: true }});
      const [p, q] = [number(x), number(y)];
      return isNaN(p) ? (isNaN(q) ? 0 : 1) : isNaN(q) ? -1 : sign * (p - q);
    }});
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    th.setAttribute("aria-sort", down ? "descending" : "ascending");
    rows.forEach(row => body.appendChild(row));
  }});
}}));
</script>
</body></html>
"""


def render_document(title: str, parts: Sequence[str], *, contents: bool = False) -> str:
    """A whole page.

    Args:
        contents: Whether it begins, after its first part, with links to its sections.
    """
    parts = list(parts)
    if contents:
        heads = re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', "\n".join(parts))
        links = " ".join(f'<a href="#{name}">{heading}</a>' for name, heading in heads)
        parts.insert(1, f'<nav aria-label="Sections">{links}</nav>')
    return PAGE_TEMPLATE.format(title=html.escape(title), body="\n".join(parts))


def render_section(title: str, *parts: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return f'<h2 id="{name}">{html.escape(title)}</h2>\n' + "\n".join(parts)


def render_note(text: str) -> str:
    """A paragraph of explanation."""
    return f'<p class="note">{html.escape(text)}</p>'


def render_table(head: Sequence[str], body: Sequence[Sequence[str]], css_class: str = "") -> str:
    """A table of text, which a click on a heading sorts."""
    top = "".join(f'<th scope="col"><button type="button">{html.escape(h)}</button></th>' for h in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>\n" for row in body)
    class_attribute = f' class="{css_class}"' if css_class else ""
    return (
        f'<div class="wide"><table{class_attribute}><thead><tr>{top}</tr></thead>\n<tbody>{lines}</tbody></table></div>'
    )


def render_figure(figure: Figure, caption: str) -> str:
    """A figure as a drawing in the page.

    Args:
        caption: What it shows, for who cannot see it.
    """
    sink = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "eav-ray"}):  # text stays text; equal figures, equal pages
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    svg = sink.getvalue()
    svg = svg[svg.index("<svg") :]
    alternative = html.escape(caption, quote=True)
    return (
        f'<figure role="img" aria-label="{alternative}">{svg}<figcaption>{html.escape(caption)}</figcaption></figure>'
    )

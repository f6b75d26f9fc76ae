"""Parts of the site that come from the code: the table of all keys, the reference of a package, `infra/README.md`.

A page asks for them by a line of its own: `<!-- keys -->`, `<!-- modules: eav_ray.data -->`, `<!-- file: NAME -->`.
"""

import re
from pathlib import Path
from typing import Any

from eav_ray.config import list_feature_keys, list_keys, list_other_kinds
from eav_ray.config.keys import format_value

ROOT = Path(__file__).resolve().parents[1]
PLACEHOLDER = re.compile(r"^<!-- (keys|modules|file)(?:: (\S+))? -->$", re.MULTILINE)


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Expand the placeholders of a page; mkdocs calls it with the text of each."""
    # A block that has no language is called text as well: only those of errors are to wrap (assets/extra.css).
    return PLACEHOLDER.sub(_expand_placeholder, markdown).replace("```text\n", "```{ .text .error }\n")


def _expand_placeholder(match: re.Match[str]) -> str:
    if match[1] == "keys":
        return format_key_tables()
    if match[1] == "modules":
        return "\n\n".join(f"::: {name}" for name in list_modules(match[2]))
    return indent_list_items((ROOT / match[2]).read_text())


def list_modules(package: str) -> list[str]:
    """List the public modules of a package, those of its sub-packages after them, or a module itself."""
    folder = ROOT / package.replace(".", "/")
    if not folder.is_dir():
        return [package]
    modules = [f"{package}.{path.stem}" for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")]
    for sub_package in sorted(path.parent for path in folder.glob("*/__init__.py")):
        modules += list_modules(f"{package}.{sub_package.name}")
    return modules


def format_key_tables() -> str:
    """Format a table for each section of an experiment, and for each kind that stands in the place of a default one."""
    sections: dict[str, dict[str, tuple[str, Any, str]]] = {}
    for key, row in list_keys().items():
        sections.setdefault(key.rpartition(".")[0] or "experiment", {})[key] = row
    sections |= dict(list_other_kinds())
    sections["Features that others have computed, of any NAME"] = list_feature_keys()
    return "\n\n".join(f"## {title}\n\n{_format_table(rows)}" for title, rows in sections.items())


def _format_table(rows: dict[str, tuple[str, Any, str]]) -> str:
    lines = ["| key | default | takes | meaning |", "|---|---|---|---|"]
    for key, (kind, default, meaning) in rows.items():
        default_text = "see the experiment's file" if isinstance(default, dict) else f"`{format_value(default)}`"
        takes = kind.replace(" | ", ", ")  # a bar would end the cell
        lines.append(f"| `{key}` | {default_text} | {takes} | {meaning} |")
    return "\n".join(lines)


def indent_list_items(text: str) -> str:
    """Indent what belongs to a numbered point by four spaces, as the site's Markdown wants it; others take three."""
    return re.sub(r"^ {3}", "    ", text, flags=re.MULTILINE)

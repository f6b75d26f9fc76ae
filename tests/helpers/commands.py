"""Commands that a text shows, and what the program's parser makes of their words."""

import re
import shlex
from pathlib import Path
from typing import Any

import typer

from eav_ray.cli.main import build_app

COMMAND = re.compile(r"(?:^|\s|/)(?:python3? jobs/(\w+)\.py|eav (\w+))((?: .*)?)$")


def list_shown_commands(path: Path, words: str = "") -> list[list[str]]:
    """List the commands in the blocks of a page, as the words after `eav`.

    Args:
        path: A page of Markdown; `python3 jobs/train.py ...` counts as `eav train ...`.
        words: What the line of a command must hold.
    """
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = [line.strip() for line in "".join(blocks).replace("\\\n", " ").splitlines()]
    found = [COMMAND.search(line) for line in lines if words in line]
    return [[match[1] or match[2], *shlex.split(match[3], comments=True)] for match in found if match]


def parse_words(words: list[str]) -> dict[str, Any]:
    """Parse the words of a command, without running it; returns its parameters by name."""
    app: Any = typer.main.get_command(build_app())
    name, *rest = words
    return dict(app.commands[name].make_context(name, rest).params)

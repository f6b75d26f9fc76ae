"""Every page of the documentation is reachable, its commands are taken by the jobs, and every error has its entry."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from eav_ray.config import Experiment, load_experiment, override, parse_changes
from tests.helpers.commands import list_shown_commands, parse_words
from tests.helpers.paths import REPOSITORY

DOCS = REPOSITORY / "docs"
TROUBLES = DOCS / "troubleshooting.md"
PAGES = [REPOSITORY / "README.md", REPOSITORY / "infra/README.md", *sorted(DOCS.glob("*.md"))]

# The entries of errors


@dataclass(frozen=True)
class ErrorText:
    """A text that a user may read, by the place in the code that makes it."""

    place: str  # file:line
    parts: tuple[str | None, ...]  # None: a name or a number

    @property
    def shown(self) -> str:
        """The text as an entry shows it."""
        return re.sub("…+", "…", "".join("…" if part is None else part for part in self.parts))

    @property
    def passes_on(self) -> bool:
        """Whether it only passes a text on that is made elsewhere."""
        return sum(c.isalpha() for part in self.parts for c in part or "") < 4


ERRORS = ("ConfigError", "DataError", "StorageError", "UnrecoverableError", "ValueError", "TrainingInterrupted")
LISTS = ("problems", "wrong")  # of texts that become one error
# Functions that return texts.
DESCRIBING = (
    "_describe_problem",
    "_explain_validation_error",
    "_find_row_problem",
    "describe_missing_folds",
    "find_batch_problem",
    "find_problems",
)
REPORTING = ("problem", "_report")  # functions that are given a reason
# Where an error passes a text on that was made elsewhere, and collected there.
ANYWHERE = {"table"}  # a line of `distributed.scoring`: why there is no table
PASSED_ON = {
    "eav_ray/config/sections.py": {"'\\n'.join(problems)"},
    "eav_ray/config/loading.py": {"'\\n'.join(problems)", "f'{source}: {error}'", "f'{key}: {error}'"},
    "eav_ray/data/preprocessing/signals.py": {"marks.problem"},
    "eav_ray/data/streaming/stream.py": {"snapshot.errors.get(m, NOT_SENT)"},
    "eav_ray/data/preprocessing/eeg.py": {"f'{file} ({recording.id}): {error}'"},
    "eav_ray/data/streaming/upload.py": {"str(prepared).removeprefix('eeg (sent/sent): ')"},
    "eav_ray/evaluation/encoder_variants.py": {"'\\n'.join(problems)", "self.describe_problems(error)"},
    "eav_ray/models/encoders/pretrained.py": {"f\"{key} is {weights}: {'; '.join(wrong)}\""},
    "eav_ray/pipelines/evaluate/adapt.py": {"problem"},
    "eav_ray/pipelines/evaluate/encoder_plan.py": {
        "'\\n'.join(problems)",
        "str(error).replace('--kinds', '--baselines')",
        "variant.describe_problems(error)",
        "variant.describe_problems(ValueError(text))",
    },
    "eav_ray/pipelines/preprocess/eeg_stage.py": {"fact"},
    "eav_ray/distributed/scoring.py": {"self.problem"},
    "eav_ray/pipelines/train/cross_validation.py": {"describe_missing_folds(failed, folds)"},
    "eav_ray/pipelines/inference/pull.py": {"f'{error}{way}'"},
    "eav_ray/pipelines/search/end_to_end_trial.py": {"f'{key}: {reason}'"},
    "eav_ray/training/collectives.py": {"first_reason", "lasting_reason"},
    "eav_ray/training/runner.py": {"reason"},
}


def split_parts(node: ast.expr) -> Iterator[str | None]:
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=values):
            for value in values:
                yield from split_parts(value)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            yield from split_parts(left)
            yield from split_parts(right)
        case _:
            yield None


def list_error_texts(path: Path) -> Iterator[tuple[ErrorText, str, str]]:
    """Each text of a file, the source that makes it, and the name of its error if it is one."""
    name = str(path.relative_to(REPOSITORY))

    def collect(node: ast.expr, error: str = "") -> tuple[ErrorText, str, str]:
        return ErrorText(f"{name}:{node.lineno}", tuple(split_parts(node))), ast.unparse(node), error

    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(func=ast.Name(id=error), args=[text, *_]) if error in ERRORS:
                yield collect(text, error)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=names), attr="append"), args=[text]) if names in LISTS:
                if isinstance(text, ast.JoinedStr | ast.Constant | ast.BinOp):
                    yield collect(text)
            case ast.Call(func=ast.Name(id=f) | ast.Attribute(attr=f), args=[*texts]) if f in REPORTING:
                yield from (collect(t) for t in texts if isinstance(t, ast.JoinedStr | ast.Constant))
            case ast.Assign(targets=[ast.Name(id="reason")], value=ast.JoinedStr() | ast.Constant() as text):
                yield collect(text)
            case ast.FunctionDef(name=f) if f in DESCRIBING:
                for inner in ast.walk(node):
                    match inner:
                        case ast.Return(value=ast.JoinedStr() as text) | ast.Assign(value=ast.JoinedStr() as text):
                            yield collect(text)
                        case ast.Return(value=ast.List(elts=texts)):
                            yield from (collect(t) for t in texts if isinstance(t, ast.JoinedStr))


FILES = sorted([*(REPOSITORY / "eav_ray").rglob("*.py"), *(REPOSITORY / "jobs").glob("*.py")])
TEXTS = [text for path in FILES for text in list_error_texts(path)]
ERROR_TEXTS = {text.shown: text for text, _, _ in TEXTS if not text.passes_on}


def list_entries() -> list[str]:
    """List the lines of the page that show the text of an error."""
    blocks = re.findall(r"^```text\n(.*?)^```", TROUBLES.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_the_texts_of_errors_are_found() -> None:
    assert len(ERROR_TEXTS) > 200
    assert any("optim.lr=3e-4" in shown for shown in ERROR_TEXTS)


def test_every_error_has_an_entry() -> None:
    entries = set(list_entries())
    missing = [f"{shown}    ({text.place})" for shown, text in ERROR_TEXTS.items() if shown not in entries]
    assert not missing, (
        f"{len(missing)} texts have no entry in docs/troubleshooting.md; add each, as it stands here before its place, "
        "to a block of ```text there, with what to do:\n" + "\n".join(missing)
    )


def test_every_entry_is_an_error_that_the_code_has_and_there_once() -> None:
    lines = list_entries()
    stale = [line for line in lines if line not in ERROR_TEXTS]
    assert not stale, "no code says this any more; take it out of docs/troubleshooting.md:\n" + "\n".join(stale)
    assert sorted(lines) == sorted(set(lines))


def test_every_entry_says_what_to_do() -> None:
    """After the last block of each heading stands a paragraph."""
    sections = re.split(r"^#+ ", TROUBLES.read_text(), flags=re.MULTILINE)[2:]
    shown = [s for s in sections if "```text" in s]
    assert len(shown) > 30
    for section in shown:
        assert len(section.rpartition("```")[2].split()) > 10, section


def test_an_error_that_passes_a_text_on_is_known() -> None:
    checked = ("ConfigError", "DataError", "UnrecoverableError")
    passing = [(t, source) for t, source, error in TEXTS if t.passes_on and error in checked]
    unknown = [
        f"{text.place}: {source}"
        for text, source in passing
        if source not in ANYWHERE | PASSED_ON.get(text.place.split(":")[0], set())
    ]
    assert not unknown, "add these to PASSED_ON, and see that what they pass on is collected:\n" + "\n".join(unknown)


# Pages and commands


def list_paths(nav: Any) -> Iterator[str]:
    match nav:
        case str(path):
            yield path
        case list(items):
            for entry in items:
                yield from list_paths(entry)
        case dict(titled):
            for entry in titled.values():
                yield from list_paths(entry)


def test_every_page_is_in_the_navigation_once() -> None:
    shown = list(list_paths(yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"]))
    assert sorted(shown) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def test_the_site_needs_no_network() -> None:
    site = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())
    assert site["theme"]["font"] is False
    assert all((DOCS / name).is_file() for name in site["extra"]["polyfills"] + site["extra_css"])
    for path in DOCS.rglob("*.md"):
        assert not re.search(r"<(script|link|img)\b|!\[[^]]*\]\(https?:", path.read_text()), path


COMMANDS = [
    (path, words)
    for path in PAGES
    if path != TROUBLES
    for words in list_shown_commands(path)
    if not any("..." in word for word in words)
]


def test_there_are_commands_in_the_pages() -> None:
    assert len(COMMANDS) > 30
    assert {path.name for path, _ in COMMANDS} >= {"README.md", "index.md", "eav.md", "data.md", "aws.md", "search.md"}


@pytest.mark.parametrize(("path", "words"), COMMANDS, ids=lambda x: x.name if isinstance(x, Path) else " ".join(x))
def test_every_command_of_a_page_is_taken(path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    given = parse_words(words).get("words") or []
    changes = parse_changes([word for word in given if "=" in word])
    named = [word for word in given if "=" not in word]
    assert len(named) == {"withdraw": 2}.get(words[0], 1) or words[0] in ("demo", "keys", "pull")
    is_checkpoint_or_store = words[0] in ("predict", "serve", "robustness", "pull", "export")
    experiment = (
        override(Experiment(), changes)
        if is_checkpoint_or_store
        else load_experiment(named[0] if named else "demo", changes)
    )
    assert experiment == override(experiment, changes)

"""Rooms that treat all modalities alike name none; tests share by `tests.helpers` and fixtures alone, and use nothing
of the package that is private."""

import ast
import re
from pathlib import Path

import pytest

from eav_ray.config import MODALITIES
from tests.helpers.paths import REPOSITORY

# What differs by modality belongs to its object (`eav_ray.data.modalities`, `eav_ray.config.modalities`).
ROOMS_OF_ALL_MODALITIES = ("training", "models/fusion", "models/classifier.py", "evaluation", "reporting", "tracking")
ROOMS_OF_ALL_MODALITIES += ("tuning", "distributed")


# What makes objects from bytes by running what they name.
PICKLING_NAMES = (
    r"\b(pickle|cloudpickle|dill|(all_)?gather_object|broadcast_object_list|(?<!safetensors\.)torch\.load)\b"
)


def list_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def list_private_names(source: str) -> set[str]:
    """Names that a module of the package defines for itself: functions, classes, attributes of instances."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Attribute(attr=name, ctx=ast.Store()) | ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
    return {name for name in names if is_private(name)}


def find_faults(source: str, private: set[str]) -> list[str]:
    """What of a test imports another test module or a conftest, or reaches for a private name of eav_ray."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                paths = [alias.name.split(".") for alias in names]
            case ast.ImportFrom(module=module, names=names, level=level):
                # There are no packages here, so that a relative import would be one of another test.
                start = ["tests", "conftest"] if level else str(module).split(".")
                paths = [[*start, alias.name] for alias in names]
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                continue  # a class of the test's own
            case ast.Attribute(attr=name):
                paths = [["eav_ray", name]] if name in private else []
            case ast.Call(func=ast.Attribute(attr="setattr" | "object"), args=[_, ast.Constant(value=str(name)), *_]):
                paths = [["eav_ray", name]] if name in private else []
            case ast.Constant(value=str(text)) if text.startswith("eav_ray.") and text.isprintable():
                paths = [text.split(".")]
            case _:
                continue
        for path in paths:
            of_test = path[0] == "tests" and any(part.startswith("test_") or part == "conftest" for part in path)
            if of_test or (path[0] == "eav_ray" and any(map(is_private, path))):
                found.append(ast.unparse(node))
    return found


def test_tests_share_by_helpers_and_use_what_is_public() -> None:
    private = {name for file in list_files("eav_ray") for name in list_private_names(file.read_text())}
    assert len(private) > 100
    files = {str(f.relative_to(REPOSITORY)): f.read_text() for f in list_files("tests", "benchmarks")}
    faults = {
        name: find_faults(source, private) for name, source in files.items() if name != "tests/test_conventions.py"
    }
    assert {name: found for name, found in faults.items() if found} == {}


@pytest.mark.parametrize(
    "line",
    [
        "from tests.data.test_splits import make",
        "import tests.data.test_splits",
        "from tests.conftest import real",
        "from .test_splits import make",
        "from eav_ray.training.runner import _fit",
        "from eav_ray._private import fit",
        "runner._fit()",
        "Runner(1)._fit",
        "monkeypatch.setattr(runner, '_fit', None)",
        "mock.patch.object(runner, '_fit', None)",
        "monkeypatch.setattr('eav_ray.training.runner._fit', None)",
    ],
)
def test_a_line_that_breaks_a_rule_is_seen(line: str) -> None:
    assert find_faults(line, list_private_names("def _fit(): ..."))


@pytest.mark.parametrize("line", ["from tests.helpers.paths import DEMO", "self._fit = 1", "os._exit(0)", "a.__dict__"])
def test_what_is_allowed_is_not_seen(line: str) -> None:
    assert find_faults(line, {"_fit"}) == []


def list_modality_names(source: str) -> list[str]:
    """Texts of a module that name a modality, and comparisons by attribute such as `section.eeg`."""
    constants = [n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant) and n.value in MODALITIES]
    attributes = [n.attr for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Attribute) and n.attr in MODALITIES]
    return [*constants, *attributes]


def test_what_treats_all_modalities_alike_names_none() -> None:
    rooms = [REPOSITORY / "eav_ray" / room for room in ROOMS_OF_ALL_MODALITIES]
    files = [file for room in rooms for file in ([room] if room.suffix else sorted(room.rglob("*.py")))]
    assert len(files) > 50
    found = {str(file.relative_to(REPOSITORY)): list_modality_names(file.read_text()) for file in files}
    assert {name: names for name, names in found.items() if names} == {}
    assert list_modality_names("x = 'eeg' in names") and list_modality_names("p.video.fps")


def test_only_templates_know_html() -> None:
    tags = {
        str(file.relative_to(REPOSITORY)): re.findall(r"</\w+>", file.read_text()) for file in list_files("eav_ray")
    }
    assert {name: found for name, found in tags.items() if found} == {}
    (page,) = (REPOSITORY / "eav_ray/reporting/templates").glob("*.html.jinja")
    assert "</body>" in page.read_text()


def test_what_starts_ray_lies_in_one_folder() -> None:
    """`make test` runs that folder in a process of its own."""
    marked = {file for file in list_files("tests") if "mark.ray" in file.read_text()} - {Path(__file__)}
    assert marked == {file for file in list_files("tests/integration") if file.name.startswith("test_")}


COUNTED = "people|subjects|recordings|folds|candidates|problems|searches|trainings|models"
TEXTS = {"wanted", "target['level']"}  # values that are no counts of what follows them


def find_plain_counts(source: str) -> list[str]:
    """Counts in texts that are followed by a plural whatever they are: `f"{n} people"`."""
    found = []
    for text in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.JoinedStr)):
        for before, value, after in zip([None, *text.values], text.values, text.values[1:], strict=False):
            if not (isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant)):
                continue
            is_of_a_key = isinstance(before, ast.Constant) and str(before.value).endswith("=")
            plural = re.match(rf" ({COUNTED})\b", str(after.value))
            if plural and not is_of_a_key and ast.unparse(value.value) not in TEXTS:
                found.append(ast.unparse(value.value) + plural[0])
    return found


def test_one_is_followed_by_a_singular() -> None:
    """`eav_ray.words` writes counts: `1 person`."""
    faults = {str(path.relative_to(REPOSITORY)): find_plain_counts(path.read_text()) for path in list_files("eav_ray")}
    assert not {path: found for path, found in faults.items() if found}
    assert find_plain_counts('f"of {n} people and {len(x)} folds, n={n} folds"') == ["n people", "len(x) folds"]


def test_nothing_of_ours_unpickles() -> None:
    """Ranks exchange JSON and tensors, stores hold JSON and safetensors."""
    for file in list_files("eav_ray", "jobs"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute | ast.Import | ast.ImportFrom):
                assert not re.search(PICKLING_NAMES, ast.unparse(node)), f"{file.name}: {ast.unparse(node)}"

"""Read an experiment from YAML and the command line, and report every wrong key or value at once."""

import contextlib
import copy
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from eav_ray.config.digests import to_dict
from eav_ray.config.keys import list_key_names, list_keys
from eav_ray.config.kinds import check_plugins_imported, import_plugins
from eav_ray.config.model_sections import MODEL_PREFIX, KindPlace, find_kind_place, get_kind_place
from eav_ray.config.sections import Experiment
from eav_ray.config.urls import check_no_secret
from eav_ray.errors import ConfigError, suggest_nearest

EXPERIMENT_ADAPTER = TypeAdapter(Experiment)
EXPERIMENTS_FOLDER = Path(__file__).resolve().parents[1] / "experiments"


class _YamlLoader(yaml.SafeLoader):
    """YAML without dates: no key takes one, so `name: 2026-11-22` is text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _YamlLoader)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a tag that its value does not fit
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{source} is not YAML: {where}{' '.join(str(reason).split())}") from None


def read_yaml(path: Path) -> Any:
    """Read a file of YAML.

    Raises:
        ConfigError: It cannot be read, or is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text, at byte {error.start}; save it as UTF-8") from None
    return _parse_yaml(text, str(path))


def build_experiment(tree: Any, *, source: str) -> Experiment:
    """Check a nested dictionary and make it an Experiment. Nothing is imported that the tree names.

    Raises:
        ConfigError: All problems at once, one a line, each with its key, what is allowed and the nearest right key;
            or a plugin that is not imported.
    """
    try:
        _check_no_secrets(tree)
        check_plugins_imported(_list_plugins(tree))
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    try:
        return EXPERIMENT_ADAPTER.validate_python(_add_feature_sections(tree))
    except ValidationError as error:
        problems = [f"{source}: {_explain_validation_error(e, tree)}" for e in error.errors()]
        raise ConfigError("\n".join(problems)) from None


def _add_feature_sections(tree: Any) -> Any:
    """Add what a tree leaves out of a modality of given features: its encoder, and how that is trained."""
    given = _get_section(tree, "preprocessing.features")
    kinds = {
        name: {"kind": "signal" if isinstance(section, dict) and section.get("signals") else "features"}
        for name, section in given.items()
    }
    for key, defaults in (("model", kinds), ("train.encoders", {name: {} for name in given})):
        if isinstance(tree, dict) and given:
            *above, last = key.split(".")
            parent = tree
            for part in above:
                parent = parent.setdefault(part, {})
            if isinstance(sections := parent.setdefault(last, {}), dict):
                # A section that is given may leave out its kind, and whatever is no section is refused later.
                given_sections = {
                    name: defaults.get(name, {}) | own if isinstance(own, dict) else own
                    for name, own in sections.items()
                }
                parent[last] = defaults | given_sections
    return tree


def _check_no_secrets(value: Any, key: str = "") -> None:
    """Refuse a URL with a secret under any key, before an error or a checkpoint repeats it."""
    if isinstance(value, dict):
        for name, child in value.items():
            _check_no_secrets(child, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for child in value:
            _check_no_secrets(child, key)
    elif isinstance(value, str):
        try:
            check_no_secret(value)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from None


def _list_plugins(tree: Any) -> list[str]:
    """The modules that a tree or a set of changes names under `plugins`; none where it holds something else."""
    plugins = tree.get("plugins") if isinstance(tree, dict) else None
    return [name for name in plugins if isinstance(name, str)] if isinstance(plugins, list | tuple) else []


def _explain_validation_error(error: Any, tree: Any) -> str:
    loc = [str(part) for part in error["loc"]]
    path = ".".join(loc)
    if error["type"] == "not_sections":
        return f"{path} is {error['input']!r}; give a section for each modality"
    if error["type"] == "not_a_section":
        kinds = ", ".join(get_kind_place(path).list_kinds())
        return f"{path} is {error['input']!r}; give a section with a kind of {kinds}"
    if error["type"] == "unknown_kind":
        return _explain_choice(f"{path}.kind", error["ctx"]["kind"], get_kind_place(path).list_kinds())
    if error["type"] == "literal_error":
        return _explain_choice(path, error["input"], re.findall(r"'[^']*'|\d+", error["ctx"]["expected"]))
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        if place := _find_place_around(path):
            kind = _get_section(tree, place.key).get("kind", place.default)
            tables = {name: list_keys(section(), f"{place.key}.") for name, section in place.list_kinds().items()}
            others = ", ".join(name for name, table in tables.items() if path in table)
            hint = f", but of {others}" if others else suggest_nearest(path, tables.get(kind, {}))
            return f'"{path}" is not a key of {place.key}.kind={kind}{hint} (`eav keys {place.key}` lists all keys)'
        nearest = suggest_nearest(path, list_key_names())
        return f'"{path}" is not a key of an experiment{nearest} (`eav keys` lists all keys)'
    if error["type"] == "unknown_dataset":
        return error["ctx"]["reason"]
    if error["type"] == "value_error":
        text = str(error["ctx"]["error"]).replace("\n", "; ")
        return f"{path}: {text}" if path else text
    return f"{path} is {error['input']!r}: {error['msg']}"


def _explain_choice(path: str, value: Any, choices: Iterable[str]) -> str:
    allowed = [choice.strip("'") for choice in choices]
    nearest = suggest_nearest(value, allowed) if isinstance(value, str) else ""
    return f"{path} is {value!r}; use one of {', '.join(allowed)}{nearest}"


def _find_place_around(path: str) -> KindPlace | None:
    """Find the place of kinds that a key of one of its sections lies in."""
    parts = path.split(".")
    return find_kind_place(".".join(parts[: 2 if path.startswith(MODEL_PREFIX) else 1])) if len(parts) > 1 else None


def _get_section(tree: Any, key: str) -> dict[str, Any]:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}


def list_experiment_names() -> list[str]:
    """List the names of the experiments that come with the package."""
    return sorted(path.stem for path in EXPERIMENTS_FOLDER.glob("*.yaml"))


def find_experiment_file(experiment: str | Path) -> Path:
    """Find the YAML file of an experiment that is given by its name or by a path.

    Raises:
        ConfigError: There is neither such a file nor an experiment of that name.
    """
    path, names = Path(experiment), list_experiment_names()
    if str(experiment) in names:
        return EXPERIMENTS_FOLDER / f"{experiment}.yaml"
    if path.is_file():
        return path
    nearest = suggest_nearest(path.stem, names)
    raise ConfigError(
        f"no experiment {experiment}{nearest}; give one of {', '.join(names)}, or the path of a YAML file"
    )


def load_experiment(experiment: str | Path, changes: dict[str, Any] | None = None) -> Experiment:
    """Load an experiment: import the plugins that it names, apply changes, check everything.

    Args:
        experiment: The name of an experiment of this package, such as `"fusion"`, or the path of a YAML file.
        changes: New values by dotted key; `eav keys` lists all keys.

    Returns:
        The checked experiment. It is frozen: change it by loading it with other `changes`.

    Raises:
        ConfigError: There is no such experiment, its file is not YAML, or a key or value is wrong.

    Example:
        >>> import eav_ray
        >>> experiment = eav_ray.load_experiment("demo", {"split.index": 2, "optim.lr": 3e-4})
        >>> experiment.split.index, experiment.optim.lr
        (2, 0.0003)
    """
    path = find_experiment_file(experiment)
    tree = read_yaml(path) or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of sections such as `data:`; it holds {type(tree).__name__}")
    import_plugins([*_list_plugins(tree), *_list_plugins(changes)])
    return build_experiment(
        _apply_changes(_fill_defaults(to_dict(Experiment()), tree), changes or {}), source=str(experiment)
    )


def _fill_defaults(defaults: dict[str, Any], tree: dict[str, Any], place: str = "") -> dict[str, Any]:
    """What a file says, with the defaults of where it says nothing.

    The defaults of a section are those of its place and not of its type: `train.encoders.audio` has its own.
    """
    filled = dict(defaults)
    for key, value in tree.items():
        default, key_path = defaults.get(key), f"{place}{key}"
        if value is None and isinstance(default, dict):
            continue  # a section with nothing in it
        filled[key] = value
        if isinstance(default, dict) and isinstance(value, dict) and key_path != "search.space":
            is_other_kind = (
                find_kind_place(key_path) is not None and value.get("kind", default["kind"]) != default["kind"]
            )  # which has other keys
            filled[key] = value if is_other_kind else _fill_defaults(default, value, f"{key_path}.")
    return filled


def override(experiment: Experiment, changes: dict[str, Any]) -> Experiment:
    """A copy with dotted changes, checked as a whole: `override(e, {"optim.lr": 3e-4})`."""
    return build_experiment(_apply_changes(to_dict(experiment), changes), source="override")


def _apply_changes(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    tree = json.loads(json.dumps(tree, default=str))  # not deepcopy: an alias of YAML must not be changed twice
    # Another kind is another section: it comes first, and changes of its keys after it.
    for dotted, value in sorted(changes.items(), key=lambda change: not change[0].endswith(".kind")):
        # The keys of search.space are themselves dotted, so what follows that prefix is one key.
        before, space, rest = dotted.partition("search.space.")
        parts = ["search", "space", rest] if space and not before else dotted.split(".")
        node = tree
        for part in parts[:-1]:
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                raise ConfigError(
                    f'"{dotted}" is not a key of an experiment{suggest_nearest(dotted, list_key_names())}'
                )
            node = child
        place = ".".join(parts[:-1])
        if parts[-1] == "kind" and (kinds := find_kind_place(place)):
            switched = kinds.switch_kind(node, value)
            node.clear()
            node.update(switched)
        # A copy: a later change of one of its keys is none of what the caller holds.
        node[parts[-1]] = copy.deepcopy(_fill_section_defaults(".".join(parts), value))
    return tree


def _fill_section_defaults(place: str, value: Any) -> Any:
    """A section that a change gives as a whole, with the defaults of its place for the keys that it leaves out."""
    if not isinstance(value, dict) or place == "search.space" or find_kind_place(place):
        return value
    default: Any = to_dict(Experiment())
    for part in place.split("."):
        default = default.get(part) if isinstance(default, dict) else None
    return _fill_defaults(default, value, f"{place}.") if isinstance(default, dict) else value


def parse_changes(words: list[str]) -> dict[str, Any]:
    """`["optim.lr=3e-4"]` to `{"optim.lr": 0.0003}`; values are read as YAML.

    Plugins that the words name are imported at once: a checkpoint that is opened next may need their kinds.
    """
    changes: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f'"{word}" is not a change; write key=value, for example optim.lr=3e-4')
        value = _parse_yaml(text, f"{key}={text!r}") if text else ""
        if isinstance(value, str):  # YAML 1.1 takes 3e-4 for a string: it wants a dot in the mantissa
            with contextlib.suppress(ValueError):
                value = float(value)
        changes[key] = value
    import_plugins(_list_plugins(changes))
    return changes

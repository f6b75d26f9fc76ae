"""Read the words of a command line: the one thing that a command works on, and `key=value` changes."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from eav_ray.config import Experiment

# Hidden: the end of every command's help says what these words are, without the types that Typer would show.
ExperimentWords = Annotated[list[str] | None, typer.Argument(metavar="EXPERIMENT KEY=VALUE", hidden=True)]
CheckpointWords = Annotated[list[str] | None, typer.Argument(metavar="CHECKPOINT KEY=VALUE", hidden=True)]
# What stands in a command's help in capitals -> what it is.
WORDS_HELP = {
    "EXPERIMENT": "EXPERIMENT is a name (demo, fusion, ...) or the path of a YAML file.",
    "CHECKPOINT": "CHECKPOINT is a folder, or how a name in the results store begins: of a training, a search, or a "
    "protocol with its fold (fusion-0f3a/2); latest is what was trained last. `eav pull STORE --list` lists them.",
    "PREFIX": "PREFIX is how the keys begin that are listed, such as optim; all without it.",
    "KEY=VALUE": "KEY=VALUE changes a key of the experiment, and `eav keys` lists all keys.",
}


def offer(meaning: str, *names: str, **settings: Any) -> Any:
    """Offer an option of a command.

    Args:
        meaning: What its help says.
        names: As `--search`; without one it is named like its argument.
        settings: As `typer.Option` takes them.
    """
    return typer.Option(*names, help=meaning, **settings)


def split_words(words: list[str] | None, what: str) -> tuple[str, dict[str, Any]]:
    """Split the words of a command into the one thing that it works on and the changes.

    Args:
        words: Those with `=` are changes.
        what: What the command works on, with what is allowed, for the error.

    Raises:
        ConfigError: Nothing is named, or several things, or a change is not YAML.
    """
    from eav_ray.config import parse_changes
    from eav_ray.errors import ConfigError

    named = [word for word in words or [] if not is_change(word)]
    if len(named) != 1:
        raise ConfigError(f"give exactly one {what}; got {', '.join(named) or 'none'}")
    return named[0], parse_changes([word for word in words or [] if is_change(word)])


def is_change(word: str) -> bool:
    """Tell a change, `key=value`, from what a command works on: a URL may have options."""
    key, equals, _ = word.partition("=")
    return bool(equals) and "://" not in key


def load_experiment(words: list[str] | None, used_stores: tuple[str, ...] | None = None) -> "Experiment":
    """Load the experiment that a command line names, with absolute paths, checked against this machine.

    Args:
        words: Its name or path, and changes.
        used_stores: The stores that the command reads or writes; all by default.
    """
    from eav_ray import config
    from eav_ray.config.paths import STORE_KEYS

    names = ", ".join(config.list_experiment_names())
    what = f"experiment, one of {names} or the path of a YAML file, for example `eav train demo`"
    named, changes = split_words(words, what)
    experiment = config.load_experiment(named, changes)
    if line := describe_unused_changes(experiment, changes):
        print(line, file=sys.stderr, flush=True)

    from eav_ray.pipelines.preparation import prepare_experiment  # imports Ray: only once all of this is right

    return prepare_experiment(experiment, STORE_KEYS if used_stores is None else used_stores)


def describe_unused_changes(experiment: "Experiment", changes: Iterable[str]) -> str:
    """Write a line on changes that have no effect where one modality is trained; empty where there are none."""
    unused = [key for key in changes if key.partition(".")[0] in ("optim", "fusion")]
    modality, *others = experiment.data.modalities
    if not unused or others:
        return ""
    verb = "has" if len(unused) == 1 else "have"
    return (
        f"{' and '.join(unused)} {verb} no effect: with {modality} alone nothing is fused; its training is "
        f"train.encoders.{modality}"
    )


def split_checkpoint_words(words: list[str] | None) -> tuple[str, dict[str, Any]]:
    """Split the words of a command on a checkpoint into its name or path and the changes."""
    return split_words(words, "checkpoint, as `eav train` and `eav pull` print it, for example `eav serve best`")


def get_results_store(changes: dict[str, Any]) -> str:
    """Return the results store in which a command on a checkpoint looks for its name."""
    return str(changes.get("store.results") or "results")


def find_checkpoint_path(name: str, results: str) -> str:
    """Find the path of the checkpoint that a command line names, by a path or by a name in a results store."""
    from eav_ray.pipelines.inference import checkpoint_names

    return checkpoint_names.find_checkpoint_path(name, results)


def split_list(text: str) -> tuple[str, ...]:
    """Split `a,b,c`."""
    return tuple(filter(None, text.split(",")))

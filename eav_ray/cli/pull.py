"""`eav pull`: fetch checkpoints from a results store."""

from typing import Annotated

import typer

from eav_ray.cli.arguments import is_change, offer

StoreWords = Annotated[list[str] | None, typer.Argument(metavar="RESULTS [NAME]", hidden=True)]


def pull(
    words: StoreWords = None,
    list_: Annotated[bool, offer("show what the store has, or with NAME the candidates of a search", "--list")] = False,
    to: Annotated[str, offer("the folder that is written", metavar="FOLDER")] = "best",
    top: Annotated[
        int | None, offer("so many of the best, or lines of the list", metavar="N", min=1, show_default=False)
    ] = None,
    metric: Annotated[str, offer("what --list NAME orders by", metavar="METRIC", show_default=False)] = "",
    next_best: Annotated[bool, offer("take the next one where one is damaged", "--next-best")] = False,
) -> None:
    """Fetch checkpoints from a results store.

    RESULTS is a results store: a folder, s3:// or gs://. NAME begins the name of a search, whose best model is taken,
    of a training, or of a protocol with its fold (fusion-0f3a/2); latest is what was trained last. Every file is
    checked against its hash. A search keeps as many checkpoints as search.refit says; --list works while it runs.

    eav pull results --list
    eav pull results fusion-0f3a --list --top 10
    eav pull s3://lab/results fusion-0f3a --to best
    """
    from eav_ray.errors import ConfigError

    store, name = _split_store_words(words or [])
    if metric and not (list_ and name):
        raise ConfigError("--metric orders what --list with a name shows; the best are those by the search's own score")

    from eav_ray.config.paths import resolve_user_path
    from eav_ray.pipelines.inference.pull import format_candidates
    from eav_ray.pipelines.inference.pull import pull as pull_checkpoints
    from eav_ray.pipelines.inference.store_listing import MAX_TRAININGS, format_models
    from eav_ray.training.run_spec import SELECTION_METRIC

    if list_ and name:
        print(format_candidates(store, name, metric=metric or SELECTION_METRIC, top=top or 20))
    elif list_:
        print(format_models(store, top=top or MAX_TRAININGS))
    else:
        folder = resolve_user_path("--to", to, allow_remote=False)
        result = pull_checkpoints(store, folder, name=name, top=top or 1, next_best=next_best)
        for line in result.skipped:
            print(f"skipped: {line}")
        print(f"pulled: {result.source}")
        for path in result.paths:
            print(f"checkpoint: {path}")
        print(f"predict with it: eav predict {result.paths[0]} data.root=...")


def _split_store_words(words: list[str]) -> tuple[str, str]:
    """Split the words into a results store and a name in it, which may be missing.

    Raises:
        ConfigError: Nothing is named, or too much, or a change of an experiment is given.
    """
    from eav_ray.errors import ConfigError

    if changes := [word for word in words if is_change(word)]:
        raise ConfigError(
            f"{changes[0].partition('=')[0]}=... is a change of an experiment, which `eav pull` does not take"
        )
    if not 1 <= len(words) <= 2:
        raise ConfigError(
            "give one results store, and perhaps a name in it, for example `eav pull results --list`; got "
            f"{', '.join(words) or 'none'}"
        )
    return words[0], "".join(words[1:])

"""`eav pull`: fetch the best checkpoints of a search."""

from typing import Annotated

import typer

from eav_ray.cli.arguments import offer, split_words

StoreWords = Annotated[list[str] | None, typer.Argument(metavar="RESULTS", hidden=True)]


def pull(
    words: StoreWords = None,
    list_: Annotated[bool, offer("show the searches of the store, or with --study its candidates", "--list")] = False,
    study: Annotated[str, offer("a search by its name, where the store has several", show_default=False)] = "",
    to: Annotated[str, offer("the folder that is written")] = "best",
    top: Annotated[int | None, offer("fetch so many of the best, or list so many", min=1, show_default=False)] = None,
    metric: Annotated[str, offer("what --list --study orders by", show_default=False)] = "",
    next_best: Annotated[bool, offer("take the next one where one is damaged", "--next-best")] = False,
) -> None:
    """Fetch the best checkpoints of a search.

    RESULTS is a results store: a folder, s3:// or gs://. Every file is checked against its hash. A search keeps as many
    checkpoints as search.refit says; --list works while it runs.

    eav pull results --list
    eav pull results --list --study fusion-0f3a... --top 10
    eav pull s3://lab/results --study fusion-0f3a... --to best
    """
    from eav_ray.errors import ConfigError

    store, changes = split_words(words, "results store, for example `eav pull results --list`")
    if changes:
        raise ConfigError(f"{next(iter(changes))}=... is a change of an experiment, which `eav pull` does not take")
    if metric and not list_:
        raise ConfigError("--metric orders what --list --study shows; the best are those by the search's own score")

    from eav_ray.config.paths import resolve_user_path
    from eav_ray.pipelines.inference.pull import format_candidates, format_studies
    from eav_ray.pipelines.inference.pull import pull as pull_checkpoints
    from eav_ray.training.run_spec import SELECTION_METRIC

    if list_ and study:
        print(format_candidates(store, study, metric=metric or SELECTION_METRIC, top=top or 20))
    elif list_:
        print(format_studies(store))
    else:
        folder = resolve_user_path("--to", to, allow_remote=False)
        result = pull_checkpoints(store, folder, study=study, top=top or 1, next_best=next_best)
        for line in result.skipped:
            print(f"skipped: {line}")
        for path in result.paths:
            print(f"checkpoint: {path}")
        print(f"predict with it: eav predict {result.paths[0]} data.root=...")

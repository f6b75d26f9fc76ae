"""`eav withdraw`: take a subject out of the stores."""

from functools import partial
from typing import Annotated

import typer

from eav_ray.cli.arguments import is_change, load_experiment, offer

WithdrawWords = Annotated[list[str] | None, typer.Argument(metavar="EXPERIMENT SUBJECT KEY=VALUE", hidden=True)]


def withdraw(
    words: WithdrawWords = None,
    yes: Annotated[bool, offer("delete what is listed", "--yes")] = False,
    models: Annotated[bool, offer("delete models and searches that learned from them, too", "--models")] = False,
) -> None:
    """Take a subject out of the stores.

    Lists shards, embeddings, predictions, pages and cached windows that hold SUBJECT, and with --yes deletes them.
    Models that were trained on them are named. Other subjects are left as they are.

    eav withdraw fusion subject7 data.root=/data/EAV
    eav withdraw fusion subject7 data.root=/data/EAV --yes
    """
    from eav_ray.errors import ConfigError

    named = [word for word in words or [] if not is_change(word)]
    if len(named) != 2:
        raise ConfigError(
            "give an experiment and a subject, for example `eav withdraw fusion subject7 data.root=/data/EAV`; got "
            f"{', '.join(named) or 'none'}"
        )
    experiment = load_experiment([named[0], *(word for word in words or [] if is_change(word))])

    from eav_ray.pipelines.withdraw import withdraw as stores

    find = partial(stores.withdraw, models=models) if yes else stores.find_holdings
    found = find(experiment, named[1])
    print(stores.format_holdings(found, experiment, deleted=yes, models=models))

"""`eav keys`: the keys of an experiment."""

from typing import Annotated

import typer

from eav_ray.cli.arguments import offer, split_list


def keys(
    prefix: Annotated[str, typer.Argument(metavar="PREFIX", hidden=True)] = "",
    plugins: Annotated[
        str, offer("modules that define further kinds, separated by commas", metavar="LIST", show_default=False)
    ] = "",
) -> None:
    """List the keys of an experiment.

    With default, what they may be, and meaning; each may be changed as key=value.

    eav keys
    eav keys optim
    eav keys model.eeg
    """
    from eav_ray.config.keys import format_keys
    from eav_ray.config.kinds import import_plugins

    import_plugins(split_list(plugins))
    print(format_keys(prefix))

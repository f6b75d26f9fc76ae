"""`eav keys`: the keys of an experiment."""

from typing import Annotated

import typer

from eav_ray.cli.arguments import offer, split_list


def keys(
    prefix: Annotated[str, typer.Argument(help="only keys that begin so, such as optim", show_default=False)] = "",
    plugins: Annotated[str, offer("modules that define further kinds, separated by commas", show_default=False)] = "",
) -> None:
    """List the keys of an experiment.

    With default, type and meaning; each may be changed as key=value.

    eav keys
    eav keys optim
    eav keys model.eeg
    """
    from eav_ray.config.keys import format_keys
    from eav_ray.config.kinds import import_plugins

    import_plugins(split_list(plugins))
    print(format_keys(prefix))

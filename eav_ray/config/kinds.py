"""Find kinds of encoders, fusions and data sets by the modules that define them: adding one touches no list.

A kind is a class below a base class. This package's own lie one a module in a package of their own; others are defined
by plugins: modules that the user names, or that installed packages name in the entry point group `eav_ray.plugins`. A
kind is known once its module is imported, in every process. Runs without torch.
"""

import importlib
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import entry_points
from typing import TypeVar

from eav_ray.errors import ConfigError

PLUGIN_GROUP = "eav_ray.plugins"

T = TypeVar("T")


@cache
def import_modules(package: str) -> None:
    """Import every module of a package, which makes the kinds that they define known."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")


def import_plugins(names: Iterable[str]) -> None:
    """Import modules that the user names; the kinds that they define are known from then on.

    Never call this with names that were read from a checkpoint or a store: importing a module runs its code.

    Raises:
        ConfigError: A module cannot be imported.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"plugins: {name} cannot be imported ({' '.join(str(error).split())}); give a module that Python "
                "finds, for example in a folder of PYTHONPATH"
            ) from None


@cache
def import_installed_plugins() -> None:
    """Import the modules that installed packages name in the entry point group `eav_ray.plugins`."""
    import_plugins(entry.module for entry in entry_points(group=PLUGIN_GROUP))


def check_plugins_imported(names: Iterable[str]) -> None:
    """Refuse plugins that nobody has imported: an experiment that is only read must not run code.

    Raises:
        ConfigError: Naming the first of them, and how to have it imported.
    """
    for name in names:
        if name not in sys.modules:
            raise ConfigError(
                f"plugins: {name} is not imported, and reading an experiment imports nothing; if you trust that "
                f"module, give plugins=[{name}] on the command line, or import it in Python first"
            )


def list_subclasses(base: type[T]) -> list[type[T]]:
    """List every class below a base class that has been defined so far."""
    return list(_iterate_subclasses(base))


def _iterate_subclasses(base: type[T]) -> Iterator[type[T]]:
    for subclass in base.__subclasses__():
        yield subclass
        yield from _iterate_subclasses(subclass)


def index_kinds(classes: Iterable[type[T]], attribute: str) -> dict[str, type[T]]:
    """Index classes by the name of their kind, in alphabetical order.

    Args:
        attribute: The class attribute that holds the name; classes without one are bases.
    Raises:
        ConfigError: Two modules define a kind of the same name.
    """
    kinds: dict[str, type[T]] = {}
    for kind in classes:
        name = getattr(kind, attribute, "")
        if not name:
            continue
        other = kinds.get(name, kind)
        # A module that is loaded again, as in a notebook, defines its kind again: the later one is meant.
        if (other.__module__, other.__qualname__) != (kind.__module__, kind.__qualname__):
            raise ConfigError(
                f"{other.__module__} and {kind.__module__} both define the kind {name}; rename one of them"
            )
        kinds[name] = kind
    return dict(sorted(kinds.items()))

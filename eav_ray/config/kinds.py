"""Find kinds of encoders, fusions and data sets by the modules that define them: adding one touches no list.

A kind is a class below a base class. This package's own lie one a module in a package of their own; others are defined
by plugins: modules that the user names, or that installed packages name in the entry point group `eav_ray.plugins`. A
kind is known once its module is imported, in every process. Runs without torch.
"""

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import entry_points
from typing import ClassVar, TypeVar

from eav_ray.errors import ConfigError, suggest_nearest

PLUGIN_GROUP = "eav_ray.plugins"
DATASETS_PACKAGE = "eav_ray.data.datasets"
NO_DATASETS = ("registry", "features", "joining", "targets", "bids_truth")  # modules there that define none

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


class DatasetKind:
    """Mark the readers of data sets, which are defined in a room above this one (`eav_ray.data.recordings`).

    Attributes:
        name: What `data.dataset` calls the data set; readers without a name are not offered.
    """

    name: ClassVar[str] = ""


@cache
def list_package_datasets() -> tuple[str, ...]:
    """List the data sets of this package by the names of their modules; none of them is imported."""
    spec = importlib.util.find_spec(DATASETS_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    return tuple(sorted(m.name for m in pkgutil.iter_modules(folders) if m.name not in NO_DATASETS))


def list_dataset_names() -> list[str]:
    """List the names that `data.dataset` takes, in alphabetical order."""
    import_installed_plugins()
    return sorted({*list_package_datasets(), *index_kinds(list_subclasses(DatasetKind), "name")})


def check_dataset_name(name: str) -> None:
    """Check that a data set of this name exists.

    Raises:
        ConfigError: It does not.
    """
    if name in list_package_datasets() or name in index_kinds(list_subclasses(DatasetKind), "name"):
        return
    names = list_dataset_names()
    if name not in names:
        raise ConfigError(f"data.dataset is {name!r}; use one of {', '.join(names)}{suggest_nearest(name, names)}")


def find_dataset_module(name: str) -> str:
    """Find the module that defines the reader of a data set from outside the package; empty for one of the package."""
    reader = index_kinds(list_subclasses(DatasetKind), "name").get(name)
    return reader.__module__ if reader and name not in list_package_datasets() else ""

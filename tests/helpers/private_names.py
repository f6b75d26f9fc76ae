"""Whether the libraries that are installed still have the private names that this program uses."""

import importlib
import inspect
from collections.abc import Iterable


def list_missing_names(names: Iterable[str]) -> list[str]:
    """Those of `module:attribute.attribute` that cannot be reached.

    The last part may be a name in quotes, which the source of what stands before it must hold, or an argument.
    """
    return [name for name in names if not _is_there(name)]


def _is_there(name: str) -> bool:
    module, _, path = name.partition(":")
    try:
        found = importlib.import_module(module)
    except ImportError:
        return False
    path, _, text = path.partition("'")
    for part in filter(None, path.split(".")):
        if not hasattr(found, part):
            return callable(found) and part in inspect.signature(found).parameters
        found = getattr(found, part)
    return not text or text.removesuffix("'") in inspect.getsource(found)

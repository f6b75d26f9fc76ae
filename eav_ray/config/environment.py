"""Set environment variables that a library reads, and put them back."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def environment_variables(values: Mapping[str, str], *, keep_existing: bool = False) -> Iterator[None]:
    """Set variables of this process' environment for the length of a block.

    Args:
        keep_existing: Leave those alone that have a value already.
    """
    changed = {name: value for name, value in values.items() if not (keep_existing and name in os.environ)}
    earlier = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in earlier.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

"""Check that optional packages are installed before anything is started."""

import importlib.util

from eav_ray.errors import ConfigError


def is_installed(module: str) -> bool:
    """Return whether a top-level module can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def require_extra(extra: str, feature: str, modules: dict[str, str], alternative: str = "") -> None:
    """Check that the packages of an extra are installed.

    Args:
        extra: The name in `pip install '.[NAME]'`.
        feature: What needs them: a key, or a command.
        modules: The package that brings each top-level module.
        alternative: What to do without them, such as `"leave store.mlflow empty"`.

    Raises:
        ConfigError: Some are missing; the line names them, and the command that installs them.
    """
    missing = [package for module, package in modules.items() if not is_installed(module)]
    if missing:
        way_out = f", or {alternative}" if alternative else ""
        raise ConfigError(
            f"{feature} needs {' and '.join(missing)}; type `pip install -c constraints.txt -e '.[{extra}]'`{way_out}"
        )

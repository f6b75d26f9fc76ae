"""Find the module that builds what a section of an experiment describes."""

import importlib
from typing import Any

from eav_ray.errors import ConfigError

SECTIONS_PACKAGE, MODELS_PACKAGE = "eav_ray.config.", "eav_ray.models."


def import_implementation(section: Any) -> Any:
    """Import the module with the function `build` of a kind.

    A section of this package is in `eav_ray.config.encoders.ast`, its network in `eav_ray.models.encoders.ast`, so that
    reading an experiment imports no torch. A kind from outside the package has both in one module.

    Raises:
        ConfigError: The module has no function `build`.
    """
    name = type(section).__module__
    if name.startswith(SECTIONS_PACKAGE):
        name = MODELS_PACKAGE + name.removeprefix(SECTIONS_PACKAGE)
    module = importlib.import_module(name)
    if not callable(getattr(module, "build", None)):
        raise ConfigError(
            f"{name} defines the kind {section.kind}, but no function build(); add one that returns its module"
        )
    return module

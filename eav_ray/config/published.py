"""What a folder of published weights says of its network, and the keys of an experiment that it decides."""

import json
from pathlib import Path
from typing import Any

from eav_ray.config.loading import override
from eav_ray.config.model_sections import MODEL_PREFIX
from eav_ray.config.sections import Experiment
from eav_ray.errors import ConfigError

WEIGHTS_INDEX = "weights.json"  # beside weights that `eav weights fetch` has fetched
SETTINGS_FILES = ("config.json", "processor_config.json", "preprocessor_config.json")


def read_published_settings(folder: Path, where: str) -> dict[str, Any]:
    """Read what config.json and its neighbours say, with what libraries put one level deeper; empty without them.

    Args:
        where: The key and its weights, for errors.
    Raises:
        ConfigError: A file is no JSON object.
    """
    settings: dict[str, Any] = {}
    for name in SETTINGS_FILES:
        try:
            if not (folder / name).is_file():
                continue
            document = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{where}, which cannot be read: {' '.join(str(error).split())}") from None
        if not isinstance(document, dict):
            raise ConfigError(f"{where}, which cannot be read: {name} is no JSON object")
        settings |= document
        for inner in (document.get("pretrained_cfg"), document.get("feature_extractor")):  # of timm, of transformers 5
            settings |= inner if isinstance(inner, dict) else {}
    return settings


def adopt_published_settings(experiment: Experiment) -> Experiment:
    """Set the keys that published weights decide, so that what is trained opens where they are not.

    Raises:
        ConfigError: The weights are of another kind of encoder than the experiment names, or a key says otherwise.
    """
    changes: dict[str, Any] = {}
    for name, section in experiment.model.items():
        weights = getattr(section, "weights", "")
        path = Path(weights).expanduser()
        if not weights or not path.exists():
            continue
        where = f"{MODEL_PREFIX}{name}.weights is {weights}"
        published = read_published_settings(path if path.is_dir() else path.parent, where)
        default = type(section)()
        for key, value in section.adopt_settings(published, where).items():
            given = getattr(section, key)
            if given not in (getattr(default, key), value):
                raise ConfigError(
                    f"{MODEL_PREFIX}{name}.{key} is {given}, but the config.json of {weights} makes it {value}; leave "
                    f"{MODEL_PREFIX}{name}.{key} out"
                )
            changes[f"{MODEL_PREFIX}{name}.{key}"] = value
    return override(experiment, changes) if changes else experiment

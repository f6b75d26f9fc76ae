"""Published weights in a folder: fetched once where there is a network, and found by jobs without one.

`<folder>/<owner>/<name>` holds the safetensors, the JSON files and the licence of a model of the Hugging Face hub, and
`weights.json` with the revision and the SHA-256 of each file.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from eav_ray.config import EncoderConfig, Experiment
from eav_ray.config.published import WEIGHTS_INDEX
from eav_ray.errors import ConfigError
from eav_ray.storage.files import hash_file, make_partial_path

FORMAT = 1
# Tensors, what says how to use them, and under which terms. Nothing that could run when it is opened.
FETCHED = ("*.safetensors", "*.json", "README.md", "LICENSE*", "NOTICE*")


@dataclass(frozen=True)
class PublishedWeights:
    """Describe fetched weights.

    Attributes:
        name: On the hub, as `facebook/wav2vec2-base`.
        revision: The commit that was fetched.
        licence: As the model card names it; empty where it names none.
        files: The SHA-256 of each file, by name.
        n_bytes: Of all files.
    """

    name: str
    revision: str
    licence: str
    files: dict[str, str]
    n_bytes: int

    @property
    def is_non_commercial(self) -> bool:
        """Whether the licence forbids commercial use."""
        words = self.licence.lower()
        return "-nc" in words or "noncommercial" in words.replace("-", "").replace(" ", "")


def fetch_weights(name: str, folder: str | os.PathLike[str], revision: str = "main") -> PublishedWeights:
    """Fetch the weights of a model of the Hugging Face hub into a folder, where an earlier copy is replaced.

    Args:
        name: As `facebook/wav2vec2-base`.
        folder: Of all weights.
        revision: A branch, tag or commit.
    Raises:
        ConfigError: There is no such model or no network, or it has no safetensors.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # Its own errors, and those of the library below, which has another name in other versions.
    network_errors: Any = (HfHubHTTPError, *HfHubHTTPError.__bases__, HFValidationError)
    target = Path(folder) / name
    if target.exists() and not (target / WEIGHTS_INDEX).is_file():
        raise ConfigError(f"{target} was not made by `eav weights fetch`; move it away, or give another --to")
    partial = make_partial_path(target)
    try:
        info = HfApi().model_info(name, revision=revision, timeout=60)
        available = [file.rfilename for file in info.siblings or []]
        wanted = [
            file
            for file in available
            if "/" not in file and file != WEIGHTS_INDEX and any(fnmatch(file, pattern) for pattern in FETCHED)
        ]
        if not any(file.endswith(".safetensors") for file in wanted):
            raise ConfigError(
                f"{name} has no .safetensors file on the hub; other formats can run code when they are opened. Choose "
                "another revision or a model that has them"
            )
        snapshot_download(name, revision=info.sha, local_dir=partial, allow_patterns=wanted)
        shutil.rmtree(partial / ".cache", ignore_errors=True)  # the library's notes on the download
        card: Any = info.card_data or {}
        licence = " ".join(str(card[key]) for key in ("license", "license_name") if card.get(key))
        weights = _describe_files(partial, sorted(wanted), name, str(info.sha), licence)
        (partial / WEIGHTS_INDEX).write_text(json.dumps({"format": FORMAT} | asdict(weights), indent=1))
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    except network_errors as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"cannot fetch {name}: {reason}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return weights


def _describe_files(folder: Path, files: list[str], name: str, revision: str, licence: str) -> PublishedWeights:
    hashes = {file: hash_file(folder / file) for file in files}
    return PublishedWeights(name, revision, licence, hashes, sum((folder / file).stat().st_size for file in files))


def read_weights_index(folder: Path) -> PublishedWeights | None:
    """Read what was noted when weights were fetched; None where a folder was not made so.

    Raises:
        ConfigError: The notes cannot be read.
    """
    path = folder / WEIGHTS_INDEX
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree.pop("format") != FORMAT:
            raise ValueError
        weights = PublishedWeights(**tree)
        if not isinstance(weights.files, dict) or not isinstance(weights.licence, str):
            raise TypeError
        return weights
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise ConfigError(f"{path} cannot be read; fetch the weights again (`eav weights fetch`)") from None


def find_published_weights(path: str) -> PublishedWeights | None:
    """Find what was noted of the weights that a key `weights` names; None where they were not fetched, or are gone.

    Args:
        path: A folder, or a file in one; may be empty.
    Raises:
        ConfigError: The notes cannot be read.
    """
    given = Path(path or os.devnull).expanduser()
    return read_weights_index(given if given.is_dir() else given.parent)


def describe_starting_weights(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Describe the published weights that encoders of an experiment start from: `name`, `revision`, `licence`.

    A network without weights, whose own code may not be used commercially, is described in the same way.

    Returns:
        A tree of JSON by modality. Weights that `eav weights fetch` did not fetch have the last part of their path as
        name, and no revision or licence.
    """
    found: dict[str, dict[str, Any]] = {}
    for m in experiment.data.modalities:
        if path := getattr(experiment.model[m], "weights", ""):
            weights = find_published_weights(path) or PublishedWeights(Path(path).name, "", "", {}, 0)
        elif licence := experiment.model[m].non_commercial_licence:
            weights = PublishedWeights(name_network(experiment.model[m]), "", licence, {}, 0)
        else:
            continue
        found[m] = {key: getattr(weights, key) for key in ("name", "revision", "licence", "is_non_commercial")}
    return found


def name_network(section: EncoderConfig) -> str:
    """Name the network of an encoder's section: its kind, and which of a library's networks it is."""
    name = getattr(section, "name", "") or getattr(section, "architecture", "")
    return f"{section.kind} {name}".strip()


def list_starting_weights(starting_weights: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say of the weights that encoders started from, as `describe_starting_weights` has them, how they are licensed."""
    lines: list[str] = []
    for m, one in starting_weights.items():
        revision = f" at {one['revision'][:12]}" if one["revision"] else ""
        licence = f"licence {one['licence']}" if one["licence"] else "licence not known, ask their authors"
        terms = (
            ": NOT FOR COMMERCIAL USE, and neither is what was trained from them" if one["is_non_commercial"] else ""
        )
        lines.append(f"{m}: {one['name']}{revision}, {licence}{terms}")
    return lines


def check_weights_files(folder: Path, files: Iterable[Path]) -> None:
    """Compare files of fetched weights with their hashes; those of other folders are taken as they are.

    Raises:
        ConfigError: A file differs from what was fetched, or was not fetched.
    """
    weights = read_weights_index(folder)
    if weights is None:
        return
    for file in files:
        if weights.files.get(file.name) != hash_file(file):
            raise ConfigError(
                f"{file} is not what was fetched of {weights.name}; fetch it again (`eav weights fetch {weights.name}`)"
            )


def list_weights(folder: str | os.PathLike[str]) -> Iterator[PublishedWeights]:
    """Yield what was fetched into a folder, in the order of the names, each file compared with its hash.

    Raises:
        ConfigError: A file differs from what was fetched.
    """
    for index in sorted(Path(folder).rglob(WEIGHTS_INDEX)):
        if any(part.startswith(".") for part in index.relative_to(folder).parts):
            continue  # what is being fetched
        weights = read_weights_index(index.parent)
        assert weights is not None
        check_weights_files(index.parent, [index.parent / file for file in weights.files])
        yield weights


def format_weights(weights: PublishedWeights) -> str:
    """Format fetched weights in one line: name, revision, files, size, licence."""
    licence = weights.licence or "not named, ask its authors"
    terms = ": NOT FOR COMMERCIAL USE" if weights.is_non_commercial else ""
    size = f"{weights.n_bytes / 1e6:.1f} MB"
    return f"{weights.name} at {weights.revision[:12]}: {len(weights.files)} files, {size}, licence {licence}{terms}"

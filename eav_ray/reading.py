"""Read what was stored: windows and predictions as tables, EEG as epochs of MNE, results of protocols as one table."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eav_ray.config import Experiment
from eav_ray.config.paths import resolve_experiment_paths, resolve_user_path
from eav_ray.data.modalities.registry import get_modality
from eav_ray.data.recordings import TARGET_PREFIX
from eav_ray.data.shards.dataset import Dataset, open_dataset
from eav_ray.data.shards.schema import ID_COLUMNS
from eav_ray.electrodes import load_standard_montage, resolve_electrodes
from eav_ray.errors import ConfigError, DataError
from eav_ray.evaluation.expected_result import summarize_expected_result
from eav_ray.evaluation.probabilities import add_probabilities
from eav_ray.storage import Store
from eav_ray.training.checkpoint import OpenedCheckpoint
from eav_ray.training.metrics import holds_numbers

if TYPE_CHECKING:
    import mne

VOLTS = 1e-6  # of a microvolt, in which EEG is stored


def read_windows(experiment: Experiment) -> pd.DataFrame:
    """Read the table of all windows that preprocessing stored, without their signals.

    Args:
        experiment: Names the data set and the shards; `data.subjects` chooses among its subjects.

    Returns:
        A row a window: `subject`, `recording`, `window` (its number), `label` (the class, by name) or the columns of
        `data.targets`, `task`, `order`, and of each modality whether the window has it (`has_audio`), for how many
        seconds (`audio_seconds`), and what was measured of it (`audio_db`).

    Raises:
        ConfigError: `data.subjects` names subjects whom the shards do not hold.
        DataError: The shards are missing or damaged.

    Example:
        >>> import eav_ray
        >>> experiment = eav_ray.load_experiment("demo", {"data.root": "data/EAV"})
        >>> windows = eav_ray.read_windows(experiment)
        >>> sorted(windows["label"].unique())
        ['Anger', 'Calmness', 'Happiness', 'Neutral', 'Sadness']
    """
    data = _open(experiment)
    return _describe_windows(data, _select_rows(data, experiment.data.subjects))


def read_epochs(experiment: Experiment, *, subjects: Sequence[str] = ()) -> "mne.EpochsArray":
    """Read the EEG of windows as epochs, with their labels as events.

    Args:
        experiment: Names the data set and the shards.
        subjects: Whose; all by default. All of them are held in memory.

    Returns:
        An epoch for each window that has EEG, in volts, with electrodes where their position is known, `event_id` by
        the names of the classes (`window` where numbers are predicted), and `read_windows` as `metadata`.

    Raises:
        ConfigError: A subject whom the shards do not hold.
        DataError: The shards are missing or damaged, or hold no EEG.

    Example:
        >>> import eav_ray
        >>> experiment = eav_ray.load_experiment("demo", {"data.root": "data/EAV"})
        >>> epochs = eav_ray.read_epochs(experiment, subjects=["subject1"])
        >>> len(epochs) == len(epochs.metadata), epochs["Anger"].metadata["label"].unique().tolist()
        (True, ['Anger'])
    """
    import mne

    data = _open(experiment)
    if "eeg" not in data.index.modalities:
        raise DataError(f"the shards in {data.shards} hold {', '.join(data.index.modalities)}, and no EEG")
    rows = _select_rows(data, tuple(subjects) or experiment.data.subjects)
    rows = rows[data.windows.ids["has_eeg"].to_numpy()[rows]]
    if not len(rows):
        raise DataError(f"no window of these subjects in {data.shards} has EEG")
    classes, hz = data.index.classes, float(experiment.preprocessing.eeg.hz)
    names = data.index.eeg_channel_names or tuple(f"EEG {k + 1}" for k in range(data.index.eeg_channels))
    values_BCT = data.windows.get(rows, "eeg").astype(np.float64) * VOLTS
    info = mne.create_info(list(names), hz, "eeg", verbose="ERROR")
    if places := _locate(names):
        info.set_montage(mne.channels.make_dig_montage(places), on_missing="ignore", verbose="ERROR")
    label = data.windows.ids["label"].to_numpy()[rows] if classes else np.zeros(len(rows), int)
    # As if the windows followed each other: MNE wants another sample for each event.
    events = np.stack([np.arange(len(rows)) * values_BCT.shape[2], np.zeros(len(rows), int), label], 1).astype(int)
    known = set(label.tolist())
    event_id = {name: k for k, name in enumerate(classes or ("window",)) if k in known}
    metadata = _describe_windows(data, rows)
    return mne.EpochsArray(values_BCT, info, events, event_id=event_id, metadata=metadata, verbose="ERROR")


def read_results(results: str | Path) -> pd.DataFrame:
    """Read what every finished protocol in a results store found.

    Args:
        results: The results store, as `store.results` names it.

    Returns:
        A row for each protocol and source of predictions: `protocol_id` (for `read_predictions`), `name`, `protocol`,
        `searched`, `seed`, `access`, `folds`, `subjects`, `recordings`, `source`; of classes `mean` accuracy over
        subjects, `sd`, `low` and `high` of its 95 % interval, `balanced` accuracy, `chance`; of numbers `ccc`,
        `pearson`, `rmse`.

    Raises:
        DataError: There is no such store, or what it holds is damaged.

    Example:
        >>> import eav_ray
        >>> experiment = eav_ray.load_experiment("demo", {"data.root": "data/EAV", "data.modalities": ["eeg"]})
        >>> report = eav_ray.cross_validate(experiment)
        >>> eav_ray.read_results("results")[["protocol", "source", "subjects"]].to_dict("records")
        [{'protocol': 'subject_kfold', 'source': 'eeg', 'subjects': 3}]
    """
    from eav_ray.config import build_experiment
    from eav_ray.pipelines.train.cross_validation import read_cv_result

    store, rows = _open_results(results), list[dict[str, Any]]()
    for name in _list_protocols(store):
        prefix = f"protocols/{name}"
        e = build_experiment(store.read_json(f"{prefix}/experiment.json"), source=store.format_path(prefix))
        found = read_cv_result(store, prefix)
        classes = OpenedCheckpoint(store, found.fold_records[0]["checkpoint"]).state.classes
        modalities = sorted(e.data.modalities)
        tree = summarize_expected_result(found.predictions, modalities, len(classes), source=prefix, description=name)
        facts = {"protocol_id": name, "name": e.name, "protocol": e.split.protocol, "searched": "-nested-" in name}
        facts |= {"seed": e.seed, "access": e.split.access, "folds": len(found.fold_records)}
        facts |= {"subjects": tree["subjects"], "recordings": tree["recordings"]}
        rows += [facts | {"source": source} | _flatten_score(one, tree) for source, one in tree["scores"].items()]
    return pd.DataFrame(rows)


def read_predictions(results: str | Path, protocol_id: str) -> pd.DataFrame:
    """Read the predictions of a finished protocol: each tested window by the model that never saw its subject.

    Args:
        results: The results store.
        protocol_id: As `read_results` lists it.

    Returns:
        A row a window: `subject`, `recording`, `window`, `label` and `predicted` (by name), `fold`,
        `probability.<class>` of the fusion and `<modality>.probability.<class>`, logits (`logit.<class>`) and weights.
        Where numbers are predicted: the true ones (`target_0`) and the predicted ones (`fusion.value_0`).

    Raises:
        DataError: There is no such protocol, or it is damaged.

    Example:
        >>> import eav_ray
        >>> experiment = eav_ray.load_experiment("demo", {"data.root": "data/EAV", "data.modalities": ["eeg"]})
        >>> report = eav_ray.cross_validate(experiment)
        >>> (protocol_id,) = eav_ray.read_results("results")["protocol_id"].unique()
        >>> table = eav_ray.read_predictions("results", protocol_id)
        >>> {"label", "predicted", "probability.Anger", "eeg.probability.Anger"} <= set(table.columns)
        True
    """
    from eav_ray.pipelines.train.cross_validation import read_cv_result

    store = _open_results(results)
    if protocol_id not in _list_protocols(store):
        known = ", ".join(_list_protocols(store)) or "none"
        raise DataError(f"{store} has no finished protocol {protocol_id}; it has {known}")
    found = read_cv_result(store, f"protocols/{protocol_id}")
    table = found.predictions
    if holds_numbers(table):
        return table
    classes = OpenedCheckpoint(store, found.fold_records[0]["checkpoint"]).state.classes
    return add_probabilities(table, classes).assign(label=np.array(classes)[table["label"].to_numpy()])


def _open(experiment: Experiment) -> Dataset:
    return open_dataset(resolve_experiment_paths(experiment, ("shards", "cache")))


def _select_rows(data: Dataset, subjects: Sequence[str]) -> np.ndarray:
    stored = data.windows.ids["subject"]
    if unknown := sorted(set(subjects) - set(stored)):
        raise ConfigError(f"subjects names {unknown[0]}, which the shards do not hold; preprocess with it")
    return np.flatnonzero(stored.isin(subjects).to_numpy() if subjects else np.ones(len(stored), bool))


def _describe_windows(data: Dataset, rows: np.ndarray) -> pd.DataFrame:
    index, ids = data.index, data.windows.ids.iloc[rows]
    columns = [c for m in index.modalities for c in (f"{m}_seconds", *get_modality(m).quality_columns)]
    measured = data.windows.read_columns(columns).iloc[rows]
    table = ids[[c for c in ID_COLUMNS if c in ids and (c != "label" or index.classes)]]
    if index.classes:
        table = table.assign(label=np.array(index.classes, dtype=object)[ids["label"].to_numpy()])
    targets = {f"{TARGET_PREFIX}{k}": name for k, name in enumerate(index.targets)}
    table = pd.concat([table, ids[list(targets)].rename(columns=targets)], axis=1)
    return pd.concat([table, ids[[f"has_{m}" for m in index.modalities]], measured], axis=1).reset_index(drop=True)


def _locate(names: Sequence[str]) -> dict[str, np.ndarray]:
    """Find the places of channels on the head, meters, by the names that they have here."""
    known = load_standard_montage().get_positions()["ch_pos"]
    return {n: known[site] for n, site in zip(names, resolve_electrodes(names), strict=True) if site in known}


def _open_results(results: str | Path) -> Store:
    path = resolve_user_path("results", str(results))
    store = Store(path)
    if "://" not in path and not Path(path).is_dir():
        raise DataError(f"{path} does not exist; give the results store, as store.results names it")
    return store


def _list_protocols(store: Store) -> list[str]:
    return [name for name in store.list_folders("protocols") if store.is_committed(f"protocols/{name}")]


def _flatten_score(score: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    if "ccc" in score:
        return score
    low, high = score["interval"]
    found = {"mean": score["mean"], "sd": score["sd"], "low": low, "high": high, "balanced": score["balanced"]}
    return found | {"chance": tree["chance"]}

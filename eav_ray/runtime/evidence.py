"""Everything that the page shows of tested checkpoints, gathered: audited, scored, measured, held against the rest.

A run that does not pass the audit has no page.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from eav_ray.config import Experiment, digest, to_dict
from eav_ray.data import arrow
from eav_ray.data.bands import BANDS, band_power
from eav_ray.data.eav import CHANNELS
from eav_ray.data.shard import INDEX, QUALITY
from eav_ray.data.split import items_of
from eav_ray.errors import DataError
from eav_ray.report import calibration, evidence, measure, protocols, search, statistics
from eav_ray.report.card import card
from eav_ray.report.table import correct_per_recording, sources_of
from eav_ray.runtime import cluster
from eav_ray.runtime.pull import finished_studies
from eav_ray.runtime.reproduce import reproduction
from eav_ray.runtime.score import Task, score
from eav_ray.runtime.train import Data
from eav_ray.storage import Store, sha256, split
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.audit import Audit, Contents, audit
from eav_ray.training.run import evenly

TRAINED = 100  # recordings of the training side that are scored for the gap, of each checkpoint
BAND_WINDOWS = 4096  # that the band power of a page is taken of
PROTOCOLS = ("paper", "within", "within_validated", "subject_kfold", "loso")

Tree = dict[str, Any]


@dataclass(frozen=True)
class Fold:
    """One tested checkpoint."""

    number: int
    path: str  # of the checkpoint
    test: tuple[str, ...]  # recordings whose scores are reported
    windows: pd.DataFrame  # predictions of them


@dataclass(frozen=True)
class Subject:
    """What the page is of."""

    title: str
    about: str
    apart: str  # what sets the tested recordings apart from those that were trained on
    protocol: str


@dataclass(frozen=True)
class _Opened:
    """Of a checkpoint, all but its weights."""

    fold: Fold
    checkpoint: ckpt.Checkpoint
    parameters: int
    audit: Audit
    key: str  # of its run


def write(
    e: Experiment, data: Data, folds: Sequence[Fold], subject: Subject, out: str, held: pd.DataFrame | None
) -> str:
    """Audit, measure, and write `index.html`, `results.json` and `model_card.md`.

    Args:
        e: The experiment of the command; its stores and runtime are used.
        out: The folder, or `s3://...`.
        held: Predictions of validation recordings by models that never saw them, with a column `fold`; without it they
            are made of the checkpoints' own validation sides, where they have any.
    Returns:
        The path of the page.
    Raises:
        DataError: A checkpoint fails the audit.
    """
    results = Store(e.store.results)
    contents = Contents(data.windows)
    opened = [_open(fold, contents) for fold in folds]
    own = opened[0].checkpoint.experiment
    names: list[str] = sorted(own.data.modalities)
    windows = pd.concat([f.windows.assign(fold=f.number) for f in folds], ignore_index=True)
    with cluster.session(e.runtime):
        trained, validation = _more(e, opened, data)
    tree = _tree(own, data, opened, subject, windows, names)
    validation = held if held is not None else validation
    tree["calibration"] = calibration.calibration(windows, sources_of(names), validation)
    tree["calibration_note"] = _temperature_note(validation, held is not None)
    tree["gap"] = measure.gap(windows, trained, names)
    measured = _quality(data, windows)
    tree["quality"] = measure.quality(windows, measured, names)
    tree["worst"] = measure.worst(tree["people"], windows, measured, data.index.classes)
    tree["bands"] = _bands(own, data, windows) if "eeg" in names else None
    tree |= _beside(own, results, data, subject, windows, names)
    extra, tree["search"] = _search(results, opened, own)
    tree = measure.plain(tree)
    store, name = split(out)
    place = store.below(name)
    place.write("results.json", json.dumps(tree, indent=1).encode())
    place.write("model_card.md", card(tree).encode())
    place.write("index.html", evidence.page(tree, extra).encode())
    return f"{place}/index.html"


def _open(fold: Fold, contents: Contents) -> _Opened:
    store, name = split(fold.path)
    checkpoint = ckpt.load(store, name)
    found = audit(checkpoint, contents, fold.test)
    if not found.passed:
        raise DataError(
            f"{fold.path} fails the leak audit, so there is no page of it: {found.first_failure}; train it again on a "
            "split that holds"
        )
    parameters = sum(t.numel() for t in checkpoint.weights.values())
    key = str(store.read_json(f"{name}/state.json")["key"])
    return _Opened(fold, replace(checkpoint, weights={}, moments={}), parameters, found, key)


def _more(e: Experiment, opened: list[_Opened], data: Data) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Predictions of some recordings of the training sides, and of the validation sides where there are any."""
    sides: list[tuple[int, Task]] = []
    for one in opened:
        split_ = one.checkpoint.split
        some = evenly(np.array(split_.train), TRAINED)
        sides.append((one.fold.number, Task(one.fold.path, tuple(map(str, some)), trained=True)))
        if split_.validation:
            sides.append((one.fold.number, Task(one.fold.path, split_.validation)))
    own = replace(opened[0].checkpoint.experiment, store=e.store, runtime=e.runtime)
    tables = score(own, [task for _, task in sides], data.shards, data.index)
    trained, validation = [], []
    for (number, task), table in zip(sides, tables, strict=True):
        if isinstance(table, str):
            raise DataError(table)
        (trained if task.trained else validation).append(table.assign(fold=number))
    return pd.concat(trained, ignore_index=True), pd.concat(validation, ignore_index=True) if validation else None


def _tree(
    own: Experiment, data: Data, opened: list[_Opened], subject: Subject, windows: pd.DataFrame, names: list[str]
) -> Tree:
    classes = data.index.classes
    accuracy = measure.accuracy(windows, names, len(classes))
    low, high = statistics.chance_band(max(1, accuracy["recordings"] // accuracy["people"]), len(classes))
    published = protocols.published() if recorded_eav(own, data) else None
    checks = [{"fold": one.fold.number, **check} for one in opened for check in one.audit.summary]
    first = opened[0].checkpoint
    trained = sorted({i for one in opened for i in one.checkpoint.split.train})
    return {
        "format": evidence.FORMAT,
        "title": subject.title,
        "about": subject.about,
        "apart": subject.apart,
        "protocol": subject.protocol,
        "modalities": names,
        "classes": list(classes),
        "experiment": to_dict(own),
        "model": {
            "Tensors": f"{opened[0].parameters:,} numbers",
            "Encoders": ", ".join(f"{m}: {getattr(getattr(own.model, m), 'kind', 'vit')}" for m in names),
            "Fusion": own.fusion.kind if len(names) > 1 else "none",
        },
        "data": {
            "Data set": f"{own.data.set}, {', '.join(own.data.tasks)}" if own.data.set == "eav" else own.data.set,
            "Labels": own.data.labels,
            "Trained on": f"{len(trained)} recordings of {len({i.split('/')[0] for i in trained})} people, all folds",
            "Shards": f"{data.index.key}, content {digest(data.index.fingerprint)}",
        },
        "accuracy": accuracy,
        "chance_of_person": {"level": 1 / len(classes), "low": low, "high": high},
        "people": measure.people(windows, names, published),
        "comparisons": measure.comparisons(windows, names),
        "confusion": measure.confusion(windows, names, len(classes)),
        "weights": measure.weights(windows, names, classes),
        "collapse": [
            {"fold": one.fold.number, **finding}
            for one in opened
            for finding in one.checkpoint.metrics.get("collapse", [])
        ],
        "histories": {
            str(one.fold.number): found for one in opened if (found := _histories(one.checkpoint.metrics, first))
        },
        "folds": [
            {"fold": one.fold.number, "run": one.key, "checkpoint": one.fold.path, "test": list(one.fold.test)}
            for one in opened
        ],
        "audit": {"checks": checks, "sha256": sha256(json.dumps(checks, sort_keys=True).encode())},
        "reproduce": reproduction(own, data.index),
    }


def _histories(metrics: dict[str, Any], checkpoint: ckpt.Checkpoint) -> Tree:
    """Part of the model -> what was measured after each epoch of its training."""
    names = checkpoint.experiment.data.modalities
    own = names[0] if len(names) == 1 else "fusion"
    found = {**metrics.get("histories", {}), own: metrics.get("history", [])}
    return {part: history for part, history in found.items() if history}


def _temperature_note(validation: pd.DataFrame | None, inner: bool) -> str:
    if validation is None:
        return (
            "No temperature: this split has no validation rows. --temperature trains the inner folds of the training "
            "people and takes it from their predictions."
        )
    of = "of inner folds" if inner else "of the validation side"
    return f"The temperature was fitted on {len(validation)} windows {of}, none of which is tested."


def recorded_eav(own: Experiment, data: Data) -> bool:
    """Whether these are the people of the published results: EAV, as recorded, and not drawn in its layout."""
    return own.data.set == "eav" and own.data.labels == "true" and data.shards.read_json(INDEX).get("recorded") is True


def _quality(data: Data, windows: pd.DataFrame) -> pd.DataFrame:
    """What preprocessing measured of the tested recordings: `subject`, `recording`, means of the shards' columns."""
    columns = [c for m in data.index.modalities for c in QUALITY[m]]
    facts = data.windows.facts(columns)
    ids = data.windows.ids[["subject", "recording"]]
    found = pd.concat([ids, facts], axis=1).groupby(["subject", "recording"], as_index=False).mean()
    tested = windows[["subject", "recording"]].drop_duplicates()
    return found.merge(tested, on=["subject", "recording"]).dropna(axis=1, how="all")


def _bands(own: Experiment, data: Data, windows: pd.DataFrame) -> Tree | None:
    """Band power of the tested recordings by class, less each person's mean over classes."""
    items = {i.id: i.label for i in items_of(data.windows.ids, own.data, own.seed)}
    tested = tuple(sorted(set(windows["subject"] + "/" + windows["recording"])))
    rows = data.windows.rows_of(tested)
    rows = evenly(rows[data.windows.ids["has_eeg"].to_numpy()[rows]], BAND_WINDOWS)
    if not len(rows):
        return None
    parts = [
        band_power(data.windows.get(rows[at : at + 256], "eeg"), own.profile.eeg.hz) for at in range(0, len(rows), 256)
    ]
    power_BCF = np.concatenate(parts)
    ids = data.windows.ids.iloc[rows]
    keys = pd.MultiIndex.from_arrays([ids["subject"], ids["id"].map(items)], names=["subject", "label"])
    table = pd.DataFrame(power_BCF.reshape(len(rows), -1), index=keys).groupby(["subject", "label"]).mean()
    relative = table - table.groupby("subject").transform("mean")
    mean = relative.groupby("label").mean()
    shape = power_BCF.shape[1:]
    values = {
        data.index.classes[int(k)]: dict(zip(BANDS, np.nan_to_num(row.reshape(shape)).T.tolist(), strict=True))
        for k, row in zip(mean.index, mean.to_numpy(), strict=True)
    }
    channels = data.shards.read_json(INDEX).get("channels") or (CHANNELS if own.data.set == "eav" else ())
    if len(channels) != shape[0]:
        return None
    return {"channels": list(channels), "values": values, "people": int(ids["subject"].nunique())}


def _beside(
    own: Experiment, results: Store, data: Data, subject: Subject, windows: pd.DataFrame, names: list[str]
) -> Tree:
    """Protocols side by side, seeds, and the published reference."""
    kept, of_seed = kept_protocols(results, own, data)
    kept[subject.protocol] = windows
    found: Tree = {"protocols": None, "seeds": None, "reference": None}
    ordered = {p: kept[p] for p in (*PROTOCOLS, *sorted(set(kept) - set(PROTOCOLS))) if p in kept}
    if len(ordered) > 1 or subject.protocol in PROTOCOLS:
        base = next((p for p in ("loso", "subject_kfold", "within_validated", "within") if p in ordered), "")
        found["protocols"] = {
            "rows": protocols.protocols(ordered, names),
            "inflation": protocols.inflation(ordered, names, base) if base else [],
            "missing": [p for p in PROTOCOLS if p not in ordered],
        }
    of_seed = {**of_seed.get(subject.protocol, {}), own.seed: windows}
    if len(of_seed) > 1:
        found["seeds"] = protocols.seeds(of_seed, names)
    if recorded_eav(own, data):
        source = "paper" if "paper" in ordered else subject.protocol
        ours = protocols.as_published(ordered[source], names)
        known = ours[ours.index.isin(protocols.published().index)]
        if len(known):
            told = f"Ours is {source}, per frame where a source sees video, else per window."
            if source != "paper":
                told += " That is another protocol: only fold.protocol=paper asks what the published number answers."
            rows = protocols.against_reference(known, names)
            found["reference"] = {"source": protocols.REFERENCE, "note": told, "rows": rows}
    return found


def kept_protocols(
    results: Store, own: Experiment, data: Data
) -> tuple[dict[str, pd.DataFrame], dict[str, dict[int, pd.DataFrame]]]:
    """Predictions of whole protocols that the results store keeps of this experiment, and of others of its seeds."""
    wanted, known = _identity(own), set(data.windows.ids["id"])
    found: dict[str, pd.DataFrame] = {}
    of_seed: dict[str, dict[int, pd.DataFrame]] = {}
    for name in results.folders("protocols"):
        prefix = f"protocols/{name}"
        if not results.is_committed(prefix):
            continue
        tree = results.read_json(f"{prefix}/experiment.json")
        if _identity_of(tree) != wanted:
            continue
        table = arrow.read_frame(results.read(f"{prefix}/predictions.parquet"), f"{results}/{prefix}")
        if not set(table["subject"] + "/" + table["recording"]) <= known:
            continue
        label = tree["fold"]["protocol"] + (", searched" if "-searched-" in name else "")
        of_seed.setdefault(label, {})[tree["seed"]] = table
        if tree["seed"] == own.seed:
            found[label] = table
    return found, of_seed


def _identity(e: Experiment) -> str:
    return _identity_of(to_dict(e))


def _identity_of(tree: Tree) -> str:
    """Of what makes two protocols comparable: all but how they are divided, seeded, computed and kept."""
    beside = ("fold", "seed", "runtime", "store", "search", "name")
    kept = {k: v for k, v in tree.items() if k not in beside}
    kept["data"] = {k: v for k, v in tree["data"].items() if k != "root"}
    kept["profile"] = {k: v for k, v in tree["profile"].items() if k not in ("chunk", "file_timeout_s")}
    return digest(kept)


def _search(results: Store, opened: list[_Opened], own: Experiment) -> tuple[list[str], list[Tree]]:
    """The searches that these checkpoints are the winners of: sections of the first, and what each said."""
    keys = {one.key for one in opened}
    sections: list[str] = []
    told: list[Tree] = []
    for study, best in finished_studies(results).items():
        if str(best.get("checkpoint", "")).split("/")[1:2] not in [[k] for k in keys]:
            continue
        name = f"searches/{study}/trials.parquet"
        trials = arrow.read_frame(results.read(name), f"{results}/{name}")
        if not sections:
            sections = search.sections(trials, {}, own.search)
        correct = [correct_per_recording(one.fold.windows, ["fusion"]) for one in opened if one.key in str(best)]
        test = float(np.mean([c.groupby("label")["fusion"].mean().mean() for c in correct])) if correct else None
        told.append(
            {
                "study": study,
                "candidates": int(trials["candidate"].nunique()),
                "inner": best.get("value"),
                "test": test,
                "changes": best.get("changes"),
                "trials": trials.to_dict("records"),
            }
        )
    return sections, told

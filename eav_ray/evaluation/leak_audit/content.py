"""Checks of what the windows of the two sides hold, under whatever name."""

from collections.abc import Sequence

import numpy as np

from eav_ray.config import Preprocessing
from eav_ray.data.modalities.registry import get_modality
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import Split
from eav_ray.evaluation.leak_audit.checks import MAX_SHOWN_NAMES, LeakCheck, describe_names, judge, leave_open
from eav_ray.evaluation.leak_audit.near_duplicates import MIN_STEPS, FingerprintCache, Fingerprints, find_alike_pairs
from eav_ray.words import format_count

EQUAL_WINDOWS = "equal windows in two splits"  # name of a check
WAY_OUT = "drop one recording of each pair from the data set and preprocess again (`eav check --deep` lists all pairs)"


class WindowContents:
    """Hashes of all windows and fingerprints of recordings, computed once for any number of checkpoints.

    Args:
        preprocessing: That the windows were made with.
    """

    def __init__(self, windows: WindowCache, preprocessing: Preprocessing) -> None:
        self.windows, self.fingerprints = windows, FingerprintCache(windows, preprocessing)
        self._digests: dict[str, np.ndarray] = {}

    def get_digests(self, modality: str) -> np.ndarray:
        if modality not in self._digests:
            self._digests[modality] = self.windows.compute_digests(modality)
        return self._digests[modality]


def audit_equal_windows(
    split: Split, pretrained_on: tuple[str, ...], contents: WindowContents, modalities: Sequence[str]
) -> LeakCheck:
    """No signal of a test window is also among the windows of the other sides, under whatever name.

    Args:
        pretrained_on: Recordings that were trained on, too, before the split's own training side.
    """
    windows = contents.windows
    test_rows = windows.find_rows(split.test)
    other_rows = windows.find_rows((*split.train, *split.validation, *pretrained_on))
    compared = 0
    for m in modalities:
        digests = contents.get_digests(m)
        mine, theirs = set(digests[test_rows]) - {""}, set(digests[other_rows]) - {""}
        compared += len(mine)
        if shared := mine & theirs:
            rows = [r for r in (*test_rows, *other_rows) if digests[r] in shared]
            ids = windows.ids.iloc[rows]
            examples = describe_names({f"{i} window {w}" for i, w in zip(ids["id"], ids["window"], strict=True)})
            return judge(EQUAL_WINDOWS, f"{len(shared)} equal signals of {m}: {examples}; {WAY_OUT}", "")
    return judge(EQUAL_WINDOWS, "", f"{compared} signals of test windows, by content: none is on another side")


def audit_equal_signals_of_datasets(
    training_contents: WindowContents,
    trained_on: tuple[str, ...],
    test_contents: WindowContents,
    tested_on: tuple[str, ...],
    modalities: Sequence[str],
) -> LeakCheck:
    """No signal of the tested recordings of one data set is among those of another that was trained on."""
    rows, test_rows = training_contents.windows.find_rows(trained_on), test_contents.windows.find_rows(tested_on)
    for m in modalities:
        digests = test_contents.get_digests(m)
        shared = ({*training_contents.get_digests(m)[rows]} & {*digests[test_rows]}) - {""}
        if shared:
            ids = test_contents.windows.ids["id"][[digest in shared for digest in digests]]
            names = describe_names(set(ids))
            return judge(EQUAL_WINDOWS, f"{len(shared)} equal signals of {m}: {names}; {WAY_OUT}", "")
    return judge(
        EQUAL_WINDOWS, "", f"no signal of {format_count(len(tested_on), 'recording')} is among those of the training"
    )


def audit_near_duplicates(modality: str, tested: Fingerprints, others: Fingerprints, n_tested: int) -> LeakCheck:
    """No recording of the test side is a copy of one of another side: encoded anew, scaled, or begun a little later.

    Args:
        n_tested: Number of recordings on the test side, with a fingerprint or without.
    """
    name = f"near-duplicates of {modality} in two splits"
    if not tested.ids or not others.ids:
        side = "another" if tested.ids else "the test"
        detail = f"no recording on {side} side has {modality} that could be told from others: none, still or too plain"
        return leave_open(name, detail)
    if tested.values.shape[1:] != others.values.shape[1:]:
        return leave_open(name, f"windows of {modality} have another form in the two data sets")
    if np.prod(tested.values.shape[1:3]) < MIN_STEPS:
        return leave_open(name, f"windows of {modality} have too few steps in time to be told apart")
    threshold = get_modality(modality).duplicate_similarity
    pairs, most = find_alike_pairs(tested, others, threshold)
    shown = [f"{p.first} and {p.second} (correlation {p.similarity:.2f})" for p in pairs[:MAX_SHOWN_NAMES]]
    more = f" and {len(pairs) - MAX_SHOWN_NAMES} more" if len(pairs) > MAX_SHOWN_NAMES else ""
    compared = f"{len(tested.ids)} of {format_count(n_tested, 'test recording')} compared with {len(others.ids)} others"
    otherwise = f"{compared}: their fingerprints correlate by {most:.2f} at most, copies by {threshold} and more"
    return judge(name, f"alike: {', '.join(shown)}{more}; {WAY_OUT}" if pairs else "", otherwise)

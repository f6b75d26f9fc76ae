"""Find recordings that are copies of one another, though encoded anew, louder or softer, or begun a little later.

What a fingerprint is of, is up to each modality (`Modality.compute_fingerprint`); here they are compared. A pair is as
alike as the correlation of its fingerprints at the shift that suits it best.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from eav_ray.config import Preprocessing
from eav_ray.data.modalities.registry import get_modality
from eav_ray.data.shards.window_cache import WindowCache

MAX_SHIFT_S = 0.15  # at which copies are looked for: an MP3 encoder alone delays by 70 ms
LAG_STEP = 0.25  # of a step of a fingerprint, for pairs that are nearly alike at whole steps
SCREENING_MARGIN = 0.15  # by which a copy may miss its threshold at the nearest whole step
MAX_REFINED_PAIRS = 2000
N_WINDOWS = 2  # the first of each recording are compared: ten seconds tell two recordings apart
MIN_STEPS = 16  # of two fingerprints, together over their windows: fewer can be alike by chance
# The effective number of independent courses in a fingerprint (participation ratio). Speech has 1.7 and more; a steady
# tone has 1, and all steady tones that swell alike would be one recording.
MIN_COMPLEXITY = 1.3
BLOCK = 512  # recordings or windows that are worked on at once


@dataclass(frozen=True)
class Fingerprints:
    """Fingerprints of recordings.

    Attributes:
        ids: Of the recordings that have one.
        values: (recordings, windows, steps, features), zero where a window has none.
        max_lag: Steps by which two may be shifted.
    """

    ids: tuple[str, ...]
    values: np.ndarray
    max_lag: int

    @classmethod
    def build(cls, ids: Sequence[str], values: np.ndarray, preprocessing: Preprocessing) -> Self:
        """Build them of values whose rate follows from the length of a window."""
        return cls(tuple(ids), values, round(MAX_SHIFT_S * values.shape[2] / preprocessing.window_s))


@dataclass(frozen=True)
class AlikePair:
    first: str
    second: str
    similarity: float  # correlation


class FingerprintCache:
    """Fingerprints of the recordings of a data set, each computed once for any number of checkpoints."""

    def __init__(self, windows: WindowCache, preprocessing: Preprocessing) -> None:
        self._windows, self._preprocessing = windows, preprocessing
        self._by_modality: dict[str, dict[str, np.ndarray]] = {}  # recording -> (windows, steps, features) float16

    def get(self, modality: str, recordings: Sequence[str]) -> Fingerprints:
        """Compute the fingerprints of those of some recordings that have one."""
        known = self._by_modality.setdefault(modality, {})
        self._compute_missing(modality, [i for i in dict.fromkeys(recordings) if i not in known])
        ids = tuple(i for i in dict.fromkeys(recordings) if known[i].any())
        values = np.stack([known[i] for i in ids]) if ids else np.zeros((0, N_WINDOWS, 1, 1), dtype=np.float16)
        return Fingerprints.build(ids, values, self._preprocessing)

    def _compute_missing(self, modality: str, recordings: Sequence[str]) -> None:
        table, known = self._windows.ids, self._by_modality[modality]
        is_wanted = table["id"].isin(recordings) & table[f"has_{modality}"] & (table["window"] < N_WINDOWS)
        rows = np.flatnonzero(is_wanted.to_numpy())
        shape = (1, 1)
        for at in range(0, len(rows), BLOCK // 16):
            part = rows[at : at + BLOCK // 16]
            x_BTF = compute_fingerprints(modality, self._windows.get(part, modality), self._preprocessing)
            shape = x_BTF.shape[1:]
            for one_TF, recording, window in zip(
                x_BTF, table["id"].iloc[part], table["window"].iloc[part], strict=True
            ):
                known.setdefault(recording, np.zeros((N_WINDOWS, *shape), np.float16))[window] = one_TF
        for recording in recordings:
            known.setdefault(recording, np.zeros((N_WINDOWS, *shape), np.float16))


def compute_fingerprints(modality: str, windows: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Compute the fingerprints of windows: (windows, steps, features); zero where one is too plain to tell anything."""
    x_BTF = get_modality(modality).compute_fingerprint(windows, preprocessing)
    return np.where(measure_complexity(x_BTF)[:, None, None] >= MIN_COMPLEXITY, x_BTF, 0)


def measure_complexity(x_BTF: np.ndarray) -> np.ndarray:
    """Measure how many independent courses fingerprints have: (windows,) at least 1; 0 where there is nothing."""
    gram_BTT = x_BTF @ x_BTF.transpose(0, 2, 1)
    total_B, squares_B = np.trace(gram_BTT, axis1=1, axis2=2), np.square(gram_BTT).sum((1, 2))
    return np.square(total_B) / np.where(squares_B > 0, squares_B, 1)


def find_alike_pairs(mine: Fingerprints, theirs: Fingerprints, threshold: float) -> tuple[list[AlikePair], float]:
    """Find the pairs of a recording of each side that are alike.

    Args:
        threshold: Correlation from which on two are alike.
    Returns:
        The pairs, the most alike first, and how alike the most alike of all pairs are: 0 where none can be compared.
    """
    return _select_alike_pairs(_correlate_all(mine, theirs), mine, theirs, threshold)


def find_alike_pairs_within(fingerprints: Fingerprints, threshold: float) -> list[AlikePair]:
    """Find the pairs of recordings of one side that are alike, each once, the most alike first."""
    best_NN = _correlate_all(fingerprints, fingerprints)
    best_NN[np.tril_indices(len(best_NN))] = 0
    return _select_alike_pairs(best_NN, fingerprints, fingerprints, threshold)[0]


def _correlate_all(mine: Fingerprints, theirs: Fingerprints) -> np.ndarray:
    best_NM = np.zeros((len(mine.ids), len(theirs.ids)), dtype=np.float32)
    for row in range(0, len(mine.ids), BLOCK):
        for column in range(0, len(theirs.ids), BLOCK):
            part = slice(row, row + BLOCK), slice(column, column + BLOCK)
            best_NM[part] = _correlate_at_whole_steps(mine.values[part[0]], theirs.values[part[1]], mine.max_lag)
    return best_NM


def _select_alike_pairs(
    best_NM: np.ndarray, mine: Fingerprints, theirs: Fingerprints, threshold: float
) -> tuple[list[AlikePair], float]:
    most = float(best_NM.max(initial=0))
    rows, columns = np.nonzero(best_NM >= threshold - SCREENING_MARGIN)
    order = np.argsort(-best_NM[rows, columns], kind="stable")[:MAX_REFINED_PAIRS]
    pairs: list[AlikePair] = []
    for at in range(0, len(order), BLOCK):
        i, j = rows[order[at : at + BLOCK]], columns[order[at : at + BLOCK]]
        similarities = _correlate_pairs(mine.values[i], theirs.values[j], mine.max_lag)
        most = max(most, float(similarities.max(initial=0)))
        pairs += [AlikePair(mine.ids[a], theirs.ids[b], float(s)) for a, b, s in zip(i, j, similarities, strict=True)]
    alike = sorted((p for p in pairs if p.similarity >= threshold), key=lambda p: -p.similarity)
    return alike, most


def _correlate_at_whole_steps(a_NWTF: np.ndarray, b_MWTF: np.ndarray, max_lag: int) -> np.ndarray:
    """Correlate each with each, (N, M): the mean over windows that both have, at the best shift of all of them."""
    n_steps = a_NWTF.shape[2]
    middle_NWD, has_a_NW = _normalize(a_NWTF[:, :, max_lag : n_steps - max_lag])
    total_NM = np.full((len(a_NWTF), len(b_MWTF)), -np.inf, dtype=np.float32)
    n_common_NM = np.ones_like(total_NM)
    for lag in range(-max_lag, max_lag + 1):
        shifted_MWD, has_b_MW = _normalize(b_MWTF[:, :, max_lag + lag : n_steps - max_lag + lag])
        n_common_NM = has_a_NW.astype(np.float32) @ has_b_MW.astype(np.float32).T
        product_NM = middle_NWD.reshape(len(a_NWTF), -1) @ shifted_MWD.reshape(len(b_MWTF), -1).T
        total_NM = np.maximum(total_NM, product_NM)
    return np.where(n_common_NM * n_steps >= MIN_STEPS, total_NM / np.maximum(n_common_NM, 1), 0)


def _correlate_pairs(a_PWTF: np.ndarray, b_PWTF: np.ndarray, max_lag: int) -> np.ndarray:
    """Correlate pair by pair, (P,), at shifts between whole steps too, where steps are interpolated."""
    n_steps = a_PWTF.shape[2]
    middle_PWD, has_a_PW = _normalize(a_PWTF[:, :, max_lag : n_steps - max_lag])
    best_P = np.full(len(a_PWTF), -np.inf, dtype=np.float32)
    for lag in np.arange(-max_lag, max_lag + LAG_STEP / 2, LAG_STEP):
        whole, rest = int(np.floor(lag)), lag - np.floor(lag)
        first, last = max_lag + whole, n_steps - max_lag + whole
        shifted = b_PWTF[:, :, first:last].astype(np.float32)
        if rest:
            shifted = (1 - rest) * shifted + rest * b_PWTF[:, :, first + 1 : last + 1]
        shifted_PWD, has_b_PW = _normalize(shifted)
        n_common_P = np.maximum((has_a_PW & has_b_PW).sum(1), 1)
        best_P = np.maximum(best_P, np.einsum("pwd,pwd->p", middle_PWD, shifted_PWD) / n_common_P)
    return best_P


def _normalize(x_NWTF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale each window to length 1: (N, W, steps * features) float32, and (N, W) whether there is anything."""
    x_NWD = x_NWTF.reshape(*x_NWTF.shape[:2], -1).astype(np.float32)
    length_NW = np.linalg.norm(x_NWD, axis=-1)
    has_NW = length_NW > 0
    return x_NWD / np.where(has_NW, length_NW, 1)[..., None], has_NW

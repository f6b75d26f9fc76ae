"""EEG of different people made alike, without labels: per-person standardisation and Euclidean alignment.

Both look at all recordings of a person that a job is given, test recordings included, and at no label.
"""

from collections.abc import Sequence

import numpy as np

RANK_TOLERANCE = 1e-6  # of the largest variance: below, a direction holds nothing, as after an average reference


def compute_alignment(session: Sequence[np.ndarray], kind: str) -> np.ndarray:
    """The matrix that brings a person's EEG to common terms: (channels, channels), for microvolts on the left.

    Args:
        session: Recordings of one person, (channels, samples) each, zero-mean. A channel that is zero throughout a
            recording is not known there, and does not count.
        kind: `standardise`: each channel to SD 1. `euclidean`: the mean covariance over recordings becomes the
            identity, by its inverse square root (He and Wu 2020, IEEE TBME 67(2), arXiv 1808.05464).
    """
    n_chans = len(session[0])
    total, n_known = np.zeros((n_chans, n_chans)), np.zeros((n_chans, n_chans))
    for x_CT in session:
        x_CT = x_CT.astype(np.float64)
        present_C = x_CT.any(axis=1)
        total += x_CT @ x_CT.T / x_CT.shape[1]
        n_known += np.outer(present_C, present_C)
    mean_CC = total / np.maximum(n_known, 1)
    if kind == "standardise":
        sd_C = np.sqrt(np.diag(mean_CC))
        return np.diag(np.where(sd_C > 0, 1 / np.where(sd_C > 0, sd_C, 1), 0))
    values, vectors = np.linalg.eigh(mean_CC)
    is_nonzero = values > RANK_TOLERANCE * values.max()
    return (vectors[:, is_nonzero] / np.sqrt(values[is_nonzero])) @ vectors[:, is_nonzero].T

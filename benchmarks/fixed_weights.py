"""Compute what an observer of synthetic recordings reaches that sees no cues: at best, and by fixed weights."""

import itertools
from collections.abc import Sequence

import numpy as np

from eav_ray.data.synthetic.ideal_observer import MODALITIES, compute_joint_distribution


def _compute_marginal_distribution(modalities: Sequence[str]) -> np.ndarray:
    """P(class, latents) for who does not know what is useless."""
    return np.sum(list(compute_joint_distribution(modalities, MODALITIES).values()), axis=0)


def bayes_accuracy_without_cues() -> float:
    """Accuracy of the ideal observer of all three latents who does not see the cues, exactly.

    No fixed combination of the three latents can be better; weights that depend on the cue can.
    """
    return float(_compute_marginal_distribution(MODALITIES).max(axis=0).sum())


def find_best_fixed_weights(steps: int = 21) -> tuple[dict[str, float], float]:
    """Best fixed weights in sum over modalities of w * log P(latent | class), blind to cues, and their exact accuracy.

    P is averaged over quality: what a calibrated classifier of one modality says that overlooks the cue. Only the
    ratios of weights matter, so the largest is 1 and the others lie on a grid of `steps` values from 0 to 1.
    """
    logs = {
        m: np.log(_compute_marginal_distribution([m])) for m in MODALITIES
    }  # of the joint with a uniform class: the same up to a constant
    total = _compute_marginal_distribution(MODALITIES)
    best: tuple[dict[str, float], float] = ({}, -1.0)
    for weights in itertools.product(np.linspace(0, 1, steps), repeat=len(MODALITIES)):
        if max(weights) < 1:
            continue
        audio, eeg, video = (w * logs[m] for w, m in zip(weights, MODALITIES, strict=True))
        score = audio[:, :, None, None] + eeg[:, None, :, None] + video[:, None, None, :]
        accuracy = float(np.take_along_axis(total, score.argmax(axis=0)[None], axis=0).sum())
        if accuracy > best[1] + 1e-12:
            best = {m: float(w) for m, w in zip(MODALITIES, weights, strict=True)}, accuracy
    return best

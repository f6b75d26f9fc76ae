"""Artefacts of one EEG recording: independent components that ICLabel knows.

ICA by Picard in its extended-infomax form (Ablin et al. 2018), labels by ICLabel (Pion-Tonachini et al. 2019,
NeuroImage 198) through mne-icalabel, whose network comes inside the package and runs under onnxruntime. What it wins is
in docs/results/eeg_cleaning.md.
"""

import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any

import mne
import numpy as np

from eav_ray.errors import ConfigError, DataError

PACKAGES = {"mne_icalabel": "mne-icalabel", "picard": "python-picard", "onnxruntime": "onnxruntime"}
LABELS = {  # in ICLabel's spelling
    "blinks": ("eye blink",),
    "all": ("eye blink", "muscle artifact", "heart beat", "line noise", "channel noise"),
}
SURE = 0.5  # probability of the label from which a component is taken out
LOW_HZ, HIGH_HZ = 1.0, 100.0  # what ICLabel was trained on
FEW = 8  # channels: the maps of fewer tell components not apart
SAMPLES_PER_WEIGHT = 20  # of which ICA wants as many for each of its n x n weights


def require() -> None:
    """Raises ConfigError, with the command to type, where a package is missing."""
    absent = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if absent:
        raise ConfigError(
            f"profile.eeg.artefacts needs {' and '.join(absent)}; type `pip install {' '.join(absent)}`, or set "
            "profile.eeg.artefacts=none"
        )


def artefacts(
    x_CT: np.ndarray, hz: float, channels: Sequence[str], montage: Any, kind: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """What of a recording is artefact; the recording less this is clean.

    Args:
        x_CT: Broadband EEG of good channels with known positions, microvolts, offsets removed.
        kind: A key of `LABELS`.
    Returns:
        The artefacts' part of it, of the same shape; and the label of each component that makes it up.
    Raises:
        DataError: Fewer than 8 channels.
    """
    if len(channels) < FEW:
        raise DataError(
            f"profile.eeg.artefacts needs at least {FEW} good channels with a known position, this recording has "
            f"{len(channels)}; leave it out, or set profile.eeg.artefacts=none"
        )
    from mne_icalabel import label_components

    info = mne.create_info(list(channels), hz, "eeg", verbose="ERROR")
    broad = mne.io.RawArray(x_CT * 1e-6, info, verbose="ERROR")
    broad.set_montage(montage, verbose="ERROR")
    broad.set_eeg_reference("average", projection=False, verbose="ERROR")
    seen = broad.copy().filter(LOW_HZ, min(HIGH_HZ, hz / 2 - 1), method="iir", verbose="ERROR")
    # The average reference takes one dimension; few samples cannot tell many components apart.
    count = min(len(channels) - 1, int((x_CT.shape[1] / SAMPLES_PER_WEIGHT) ** 0.5))
    ica = mne.preprocessing.ICA(
        count,
        method="picard",
        fit_params={"ortho": False, "extended": True},
        max_iter="auto",
        random_state=0,
        verbose="ERROR",
    )
    with warnings.catch_warnings():
        # Not converged after 200 rounds: what it has by then is labelled all the same. ICLabel remarks on rates below
        # 200 Hz and on filters that it would have set otherwise.
        warnings.simplefilter("ignore")
        ica.fit(seen, verbose="ERROR")
        labelled = label_components(seen, ica, method="iclabel")
    found = [
        (k, str(label))
        for k, (label, sure) in enumerate(zip(labelled["labels"], labelled["y_pred_proba"], strict=True))
        if label in LABELS[kind] and sure >= SURE
    ]
    if not found:
        return np.zeros_like(x_CT), ()
    cleaned = ica.apply(broad.copy(), exclude=[k for k, _ in found], verbose="ERROR")
    part_CT = (broad.get_data() - cleaned.get_data()) * 1e6
    return part_CT, tuple(label for _, label in found)

"""A subject in each of the layouts that copies of EAV have, with signals that say where they belong."""

from pathlib import Path

import h5py
import numpy as np
import scipy.io

from eav_ray.data.datasets.eav import EAV_CLASSES

# Label rows of six recordings: speaking is odd. Two classes speak twice, one listens twice.
ROWS = (1, 0, 3, 5, 6, 3)
SAMPLES = 40


def make_signal(n: int = len(ROWS)) -> np.ndarray:
    """(samples, 30, n); every number says where it belongs."""
    t, c, k = np.meshgrid(np.arange(SAMPLES), np.arange(30), np.arange(n), indexing="ij")
    return (k * 10_000 + c * 100 + t).astype(np.float32)


def encode_labels(rows: tuple[int, ...] = ROWS) -> np.ndarray:
    return np.eye(10)[:, list(rows)]


def save_v73(path: Path, name: str, values: np.ndarray) -> None:
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset(name, data=values.T).attrs["MATLAB_class"] = np.bytes_("double")
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


def write_subject(
    root: Path,
    *,
    number: int = 1,
    folder: str = "subject1",
    key: str = "seg",
    v73: bool = False,
    transposed: bool = False,
    suffix: str = "_Aud",
    rows: tuple[int, ...] = ROWS,
) -> Path:
    """One subject with empty media files, which `scan` does not open."""
    subject = root / folder
    for kind in ("EEG", "Audio", "Video"):
        (subject / kind).mkdir(parents=True)
    save = save_v73 if v73 else (lambda path, name, values: scipy.io.savemat(path, {name: values}))
    labels = encode_labels(rows).T if transposed else encode_labels(rows)
    save(subject / "EEG" / f"subject{number}_eeg.mat", key, make_signal(len(rows)))
    save(subject / "EEG" / f"subject{number}_eeg_label.mat", "label", labels)
    for index, row in enumerate(rows):
        name = f"{index + 1:03d}_Trial_{index % 3:02d}_{('Listening', 'Speaking')[row % 2]}_{EAV_CLASSES[row // 2]}"
        (subject / "Video" / f"{name}.mp4").touch()
        if row % 2:
            # The trial number of the audio is another one: it must not matter.
            (subject / "Audio" / f"{name.replace('Trial_0', 'Trial_1')}{suffix}.wav").touch()
    (subject / "subjects.tsv").touch()
    (subject / "Video" / "._001_Trial_01_Speaking_Neutral.mp4").touch()
    return subject

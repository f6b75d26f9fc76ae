"""A data set from outside the package: all that one takes."""

from pathlib import Path

import numpy as np

from eav_ray.data.recordings import DatasetReader, Listing, RawEEG, Recording

HZ, CHANNELS = 200, ("Fp1", "Cz", "Oz", "Pz")


class ToyDataset(DatasetReader):
    """Reader of `root/<subject>_<class>_<number>.npy`: (channels, samples) at 200 Hz, microvolts."""

    name = "toy_dataset"
    classes = ("calm", "loud")
    modalities = ("eeg",)
    channels = CHANNELS

    def scan(self) -> Listing:
        recordings: list[Recording] = []
        for path in sorted(self.root.glob("*.npy")):
            subject, label, number = path.stem.split("_")
            name = f"{label}_{number}"
            recordings.append(
                Recording(subject, name, self.classes.index(label), "speaking", len(recordings), eeg=str(path))
            )
        return Listing(tuple(recordings))

    def read_eeg(self, recording: Recording) -> RawEEG:
        assert recording.eeg is not None
        return RawEEG(np.load(recording.eeg, allow_pickle=False), HZ, CHANNELS, "microvolt")


def write_recordings(root: Path, n_subjects: int = 3, per_class: int = 3, seconds: int = 4) -> None:
    """Noise, that of one class three times as loud as that of the other."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    for subject in range(n_subjects):
        for label, name in enumerate(ToyDataset.classes):
            for number in range(per_class):
                values = 10 * (1 + 2 * label) * rng.standard_normal((len(CHANNELS), HZ * seconds))
                np.save(root / f"subject{subject}_{name}_{number}.npy", values.astype(np.float32))

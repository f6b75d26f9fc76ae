"""RAVDESS, speech, audio only, with the five emotions of EAV.

Livingstone and Russo 2018, doi:10.1371/journal.pone.0196391. A file name is seven two-digit fields:
modality (03: audio only), channel (01: speech), emotion, intensity, statement, repetition, actor.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from eav_ray.data.manifest import Listing, Problem, RawEEG, Recording
from eav_ray.errors import DataError

CLASSES = ("Neutral", "Sadness", "Anger", "Happiness", "Calmness")
LABEL_OF_CODE = {"01": 0, "04": 1, "05": 2, "03": 3, "02": 4}
CLIP = re.compile(r"03-01-(\d\d)-\d\d-\d\d-\d\d-(\d\d)\.(wav|flac)", re.IGNORECASE)
ACTOR = re.compile(r"Actor_(\d\d)")


class RAVDESS:
    """Reader of `root/Actor_NN/03-01-EE-..-NN.(wav|flac)`.

    Args:
        root: The folder that contains `Actor_*`, or that contains `ravdess/Actor_*`.
    Raises:
        DataError: There is no such folder.
    """

    name = "ravdess"
    classes: tuple[str, ...] = CLASSES
    modalities: tuple[str, ...] = ("audio",)

    def __init__(self, root: str) -> None:
        given = Path(root).expanduser().absolute()
        for folder in (given, given / "ravdess"):
            self.actors = sorted(p for p in folder.glob("Actor_*") if ACTOR.fullmatch(p.name) and p.is_dir())
            if self.actors:
                return
        raise DataError(f"{given} is not a RAVDESS folder: no Actor_NN/ inside; set data.root to the folder with them")

    def scan(self) -> Listing:
        """One recording a clip; other emotions are not listed. `order` is the position by file name."""
        recordings: list[Recording] = []
        problems: list[Problem] = []
        for folder in self.actors:
            number = folder.name[-2:]
            subject = f"actor{number}"
            clips: dict[str, list[Path]] = {}
            for path in sorted(folder.iterdir()):
                match = CLIP.fullmatch(path.name)
                if match is None or match[1] not in LABEL_OF_CODE:
                    continue
                if match[2] != number:
                    reason = f"its name says actor {match[2]}, its folder {number}; move or rename it"
                    problems.append(Problem(subject, path.stem, str(path), reason))
                    continue
                clips.setdefault(path.stem, []).append(path)
            for order, (stem, paths) in enumerate(sorted(clips.items())):
                if len(paths) > 1:
                    names = ", ".join(p.name for p in paths)
                    problems.append(Problem(subject, stem, str(paths[1]), f"the same clip twice ({names}); keep one"))
                    continue
                label = LABEL_OF_CODE[stem.split("-")[2]]
                recordings.append(Recording(subject, stem, label, "speaking", order, audio=str(paths[0])))
        return Listing(tuple(recordings), tuple(problems))

    def sitting(self, recordings: Sequence[Recording]) -> list[Recording]:
        return list(recordings)

    def read_eeg(self, recording: Recording) -> RawEEG:
        """Always fails: there is none."""
        raise DataError(f"{recording.id}: RAVDESS has no EEG; set data.modalities=[audio]")

"""RAVDESS, speech, with the five emotions of EAV: audio and video.

Livingstone and Russo 2018, doi:10.1371/journal.pone.0196391. A file name is seven two-digit fields: modality (01: film
with sound, 02: film without, 03: sound), channel (01: speech), emotion, intensity, statement, repetition, actor. The
other six name a clip, which is published in all three modalities.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from eav_ray.config import ModalityName
from eav_ray.data.io.file_access import is_folder
from eav_ray.data.recordings import DatasetReader, Listing, Problem, Recording
from eav_ray.errors import DataError

CLASSES = ("Neutral", "Sadness", "Anger", "Happiness", "Calmness")
CODE_TO_LABEL = {"01": 0, "04": 1, "05": 2, "03": 3, "02": 4}
FILE_PATTERN = re.compile(r"(?:(0[12])-(01-.*)\.mp4|(03)-(01-.*)\.(?:wav|flac))", re.IGNORECASE)
CLIP_PATTERN = re.compile(r"01-(\d\d)-\d\d-\d\d-\d\d-(\d\d)")
ACTOR_PATTERN = re.compile(r"Actor_(\d\d)")
# As the archives unpack: Actor_NN/, or Video_Speech_Actor_NN/Actor_NN/ and Audio_Speech_Actors_01-24/Actor_NN/.
ACTOR_FOLDER_GLOBS = ("Actor_*", "*_Speech_Actor*/Actor_*")


class RAVDESS(DatasetReader):
    """Reader of `root/Actor_NN/MM-01-EE-..-NN.(wav|flac|mp4)`, and of the archives' folders around `Actor_NN`.

    Args:
        root: The folder that contains `Actor_*` or the archives, or that contains these in `ravdess/`.
    Raises:
        DataError: There is no such folder.
    """

    name = "ravdess"
    classes: tuple[str, ...] = CLASSES
    modalities: tuple[ModalityName, ...] = ("audio", "video")

    def __init__(self, root: str) -> None:
        given = Path(root).expanduser().absolute()
        for folder in (given, given / "ravdess"):
            self.actors: dict[str, list[Path]] = {}
            for path in sorted(path for place in ACTOR_FOLDER_GLOBS for path in folder.glob(place)):
                if ACTOR_PATTERN.fullmatch(path.name) and is_folder(path):
                    self.actors.setdefault(path.name[-2:], []).append(path)
            if self.actors:
                return
        raise DataError(f"{given} is not a RAVDESS folder: no Actor_NN/ inside; set data.root to the folder with them")

    def scan(self) -> Listing:
        """One recording a clip; other emotions are not listed. `order` is the position by file name.

        Audio is the file of sound, or that of the film where there is none; video is the film with sound, or without.
        """
        recordings: list[Recording] = []
        problems: list[Problem] = []
        for number, folders in sorted(self.actors.items()):
            subject = f"actor{number}"
            clips: dict[str, dict[str, list[Path]]] = {}
            for path, modality, clip, actor in _list_files(folders):
                if actor != number:
                    reason = f"its name says actor {actor}, its folder {number}; move or rename it"
                    problems.append(Problem(subject, clip, str(path), reason))
                else:
                    clips.setdefault(clip, {}).setdefault(modality, []).append(path)
            for order, (clip, files) in enumerate(sorted(clips.items())):
                duplicates = next((paths for paths in files.values() if len(paths) > 1), None)
                if duplicates:
                    names, second = ", ".join(p.name for p in duplicates), str(duplicates[1])
                    problems.append(Problem(subject, clip, second, f"the same clip twice ({names}); keep one"))
                    continue
                paths = {modality: str(path) for modality, (path,) in files.items()}
                label = CODE_TO_LABEL[clip.split("-")[1]]
                audio, video = paths.get("03", paths.get("01")), paths.get("01", paths.get("02"))
                recordings.append(Recording(subject, clip, label, "speaking", order, audio=audio, video=video))
        return Listing(tuple(recordings), tuple(problems))


def _list_files(folders: Sequence[Path]) -> Iterator[tuple[Path, str, str, str]]:
    """(path, modality, clip, actor) of every file of one of the five emotions."""
    for path in sorted(path for folder in folders for path in folder.iterdir()):
        match = FILE_PATTERN.fullmatch(path.name)
        if match is None:
            continue
        modality, clip = match[1] or match[3], match[2] or match[4]
        fields = CLIP_PATTERN.fullmatch(clip)
        if fields is not None and fields[1] in CODE_TO_LABEL:
            yield path, modality, clip, fields[2]

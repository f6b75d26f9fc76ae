"""CREMA-D with the four emotions that it shares with EAV: audio and video.

Cao et al. 2014, doi:10.1109/TAFFC.2014.2336244. 91 actors, 12 sentences. A file name is actor, sentence, emotion and
level, the same in each folder: `AudioWAV/1001_DFA_ANG_XX.wav`, `VideoFlash/1001_DFA_ANG_XX.flv`.
"""

import re
from pathlib import Path

from eav_ray.config import ModalityName
from eav_ray.data.io.file_access import is_file, is_folder, list_folder
from eav_ray.data.recordings import DatasetReader, Listing, Problem, Recording
from eav_ray.errors import DataError

CODE_TO_LABEL = {"ANG": 0, "HAP": 1, "NEU": 2, "SAD": 3}
CLASSES = ("Anger", "Happiness", "Neutral", "Sadness")
EMOTIONS = (*CODE_TO_LABEL, "DIS", "FEA")  # of which EAV does not have the last two
ACTOR_IDS = range(1001, 1092)
CLIP_PATTERN = re.compile(r"(\d{4})_([A-Z]{3})_([A-Z]{3})_(LO|MD|HI|XX?)")  # one published clip has the level X
# Folders by what is taken first, with the suffixes of their files.
AUDIO_FOLDERS = {"AudioWAV": (".wav", ".flac"), "AudioMP3": (".mp3",)}
VIDEO_FOLDERS = {"VideoFlash": (".flv", ".mp4")}
FOLDERS = (*AUDIO_FOLDERS, *VIDEO_FOLDERS)
LFS_POINTER_PREFIX = b"version https://git-lfs"  # what a clone without Git LFS holds in place of a file


class CREMAD(DatasetReader):
    """Reader of `root/AudioWAV/*.wav`, `root/AudioMP3/*.mp3` and `root/VideoFlash/*.(flv|mp4)`; each folder may lack.

    Args:
        root: The folder that contains these, or that contains it as `cremad/` or `CREMA-D/`.
    Attributes:
        modalities: Sound, which films have too, and video where there are films.
    Raises:
        DataError: There is no such folder, or its files were never fetched from Git LFS.
    """

    name = "cremad"
    classes: tuple[str, ...] = CLASSES

    def __init__(self, root: str) -> None:
        given = Path(root).expanduser().absolute()
        for folder in (given, given / "cremad", given / "CREMA-D"):
            self.folders = {name: folder / name for name in FOLDERS if is_folder(folder / name)}
            if self.folders:
                break
        else:
            raise DataError(
                f"{given} is not a CREMA-D folder: no {', '.join(FOLDERS)} inside; set data.root to the folder "
                "with them"
            )
        # Who wants the sound alone need not fetch the films.
        pointers = {name for name, place in self.folders.items() if _is_lfs_pointer(place)}
        if pointers == set(self.folders):
            raise DataError(
                f"{', '.join(sorted(pointers))} in {folder} hold pointers of Git LFS and no recordings; run "
                "`git lfs pull` there"
            )
        self.folders = {name: place for name, place in self.folders.items() if name not in pointers}
        has_video = bool(set(VIDEO_FOLDERS) & set(self.folders))
        self.modalities: tuple[ModalityName, ...] = ("audio", "video") if has_video else ("audio",)

    def scan(self) -> Listing:
        """One recording a clip; disgust and fear are not listed. `order` is the position by file name.

        Audio is a file of sound, or that of the film where there is none.
        """
        problems: list[Problem] = []
        audio, video = self._find_clips(AUDIO_FOLDERS, problems), self._find_clips(VIDEO_FOLDERS, problems)
        bad = {(p.subject, p.recording) for p in problems}
        recordings: list[Recording] = []
        orders: dict[str, int] = {}
        for subject, clip in sorted({*audio, *video}):
            order = orders[subject] = orders.get(subject, -1) + 1
            key = subject, clip
            if key not in bad:
                label, video_path = CODE_TO_LABEL[clip.split("_")[1]], video.get(key)
                recordings.append(
                    Recording(
                        subject, clip, label, "speaking", order, audio=audio.get(key, video_path), video=video_path
                    )
                )
        return Listing(tuple(recordings), tuple(problems))

    def _find_clips(
        self, suffixes_by_folder: dict[str, tuple[str, ...]], problems: list[Problem]
    ) -> dict[tuple[str, str], str]:
        """(subject, clip) -> path, of the first folder that has the clip; adds to `problems`."""
        path_by_clip: dict[tuple[str, str], str] = {}
        for name, suffixes in suffixes_by_folder.items():
            folder_clips: dict[tuple[str, str], list[Path]] = {}
            paths = sorted(self.folders[name].iterdir()) if name in self.folders else []
            for path in paths:
                # Hidden files are what systems leave in a folder.
                if path.suffix.lower() not in suffixes or path.name.startswith("."):
                    continue
                match = CLIP_PATTERN.fullmatch(path.stem)
                if match is None or int(match[1]) not in ACTOR_IDS or match[3] not in EMOTIONS:
                    reason = (
                        f"its name is not ACTOR_SENTENCE_EMOTION_LEVEL with an actor of {ACTOR_IDS[0]} to "
                        f"{ACTOR_IDS[-1]}, an emotion of {', '.join(sorted(EMOTIONS))} and a level of LO, MD, HI, XX; "
                        "rename it or take it out"
                    )
                    problems.append(Problem("", path.stem, str(path), reason))
                elif match[3] in CODE_TO_LABEL:
                    folder_clips.setdefault((f"actor{match[1]}", path.stem.split("_", 1)[1]), []).append(path)
            for key, files in folder_clips.items():
                if len(files) > 1:
                    names = ", ".join(p.name for p in files)
                    problems.append(Problem(*key, str(files[1]), f"the same clip twice ({names}); keep one"))
                path_by_clip.setdefault(key, str(files[0]))
        return path_by_clip


def _is_lfs_pointer(folder: Path) -> bool:
    """Whether the first file of a folder is what Git LFS puts in the place of one."""
    first = next((p for p in list_folder(folder) if is_file(p) and not p.name.startswith(".")), None)
    if first is None:
        return False
    with first.open("rb") as file:
        return file.read(len(LFS_POINTER_PREFIX)) == LFS_POINTER_PREFIX

"""Generate synthetic subjects in the exact on-disk layout of EAV, whose best possible accuracy is known.

A recording has a true class. Each of its modalities shows a *latent* class, drawn from one row of that modality's
confusion matrix and rendered unmistakably (`data/synthetic/render.py`), so that for an ideal observer the draw is the
only source of error. In 30 % of the recordings one modality is *useless*: it shows a class that was drawn without
looking at the label, and carries a cue that says so. A model that ignores the cue is misled. With `cue="next"` the
next modality carries it instead: then no modality alone can know that it is useless, only a model that sees them all.

The signatures of the plain kind are so plain that a support-vector machine on means over a window recovers them: it
tests that everything is connected. `kind="hard"` hides the class from such means and sets people farther apart, so that
it tests encoders; the best possible accuracy is the same.

    python -m eav_ray.data.synthetic.generate ROOT --n-subjects 8 --per-class 10

The truth about a subject is written beside the recordings, as `synthetic.json`. Training never reads it.
"""

import argparse
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import scipy.io
import soundfile

from eav_ray.data.datasets.eav import SYNTHETIC_MARKER
from eav_ray.data.synthetic import render, render_face
from eav_ray.data.synthetic.ideal_observer import (
    CLASSES,
    MODALITIES,
    USELESS_SHARE,
    bayes_accuracy,
    find_cue_modality,
    get_confusion_matrix,
)
from eav_ray.errors import ConfigError
from eav_ray.processes import map_in_processes
from eav_ray.words import format_count

LISTENING, SPEAKING = "Listening", "Speaking"  # in the order of the label rows: row = 2 * class + (1 if speaking)


AUDIO_RATES = (16000, 22050, 44100, 48000)


RENDERER_VERSION = 3  # raise when rendering changes: subjects of another version are not reused


@dataclass(frozen=True)
class SyntheticSpec:
    """What to generate. Equal specs give equal values, subject by subject; `n_subjects` may grow later.

    Raises:
        ConfigError: A value that cannot be generated.
    """

    n_subjects: int = 8
    per_class: int = 10  # speaking recordings per class and subject, and as many listening ones if there are any
    listening: bool = False
    seconds: int = 20
    eeg_hz: int = 500
    audio_hz: int = 16000
    video_size: tuple[int, int] = (96, 72)  # width, height
    fps: int = 30
    seed: int = 0
    mat_version: str = "5"  # of the EEG file: "5", or "7.3", which is HDF5
    cue: str = "own"  # which modality carries the cue that one is useless: "own" that one, "next" the one after it
    kind: str = "plain"  # "hard": classes lie in the order of what is shown, people differ more, noise is louder

    def __post_init__(self) -> None:
        has_keys = self.per_class >= 1 and self.recordings_per_subject <= 999
        rules = (
            ("n_subjects", self.n_subjects >= 1, "at least 1"),
            ("per_class", has_keys, "1 to 999 recordings have 3-digit keys"),
            ("seconds", self.seconds >= 5, "at least 5, one window"),
            ("eeg_hz", self.eeg_hz >= 200, "at least 200, the artefacts need it"),
            ("audio_hz", self.audio_hz in AUDIO_RATES, f"one of {AUDIO_RATES}"),
            ("video_size", all(n >= 48 and n % 2 == 0 for n in self.video_size), "even, at least 48"),
            ("fps", self.fps >= 1, "at least 1"),
            ("seed", self.seed >= 0, "at least 0"),
            ("mat_version", self.mat_version in ("5", "7.3"), '"5" or "7.3"'),
            ("cue", self.cue in ("own", "next"), '"own" or "next"'),
            ("kind", self.kind in ("plain", "hard"), '"plain" or "hard"'),
            ("seconds", self.kind == "plain" or self.seconds % render.BLOCK_S == 0, "a multiple of 5 for kind=hard"),
        )
        problems = [f"{name} is {getattr(self, name)}; {rule}" for name, is_valid, rule in rules if not is_valid]
        if problems:
            raise ConfigError("cannot generate: " + "; ".join(problems))

    @property
    def is_hard(self) -> bool:
        """Whether means over a window hardly show the class."""
        return self.kind == "hard"

    @property
    def recordings_per_subject(self) -> int:
        """Recordings per subject."""
        return self.per_class * len(CLASSES) * (2 if self.listening else 1)


@dataclass(frozen=True)
class GroundTruth:
    """What one recording shows, and why."""

    key: int  # 1-based index on the EEG recording axis
    label: int
    task: str
    latents: dict[str, int]  # of the modalities that exist
    useless_modality: str | None
    cue_modality: str | None  # the modality that carries the cue


def draw_ground_truths(spec: SyntheticSpec, subject_number: int) -> tuple[GroundTruth, ...]:
    """Draw a subject's recordings in time, classes and tasks shuffled.

    Args:
        subject_number: 1-based.
    """
    rng = np.random.default_rng([spec.seed, subject_number])
    tasks = (LISTENING, SPEAKING) if spec.listening else (SPEAKING,)
    slots = [(label, task) for label in range(len(CLASSES)) for task in tasks for _ in range(spec.per_class)]
    order = enumerate(rng.permutation(len(slots)), start=1)
    return tuple(_draw_ground_truth(rng, key, *slots[slot], cue=spec.cue) for key, slot in order)


def _draw_ground_truth(rng: np.random.Generator, key: int, label: int, task: str, *, cue: str) -> GroundTruth:
    present = [m for m in MODALITIES if m != "audio" or task == SPEAKING]
    useless = present[rng.integers(len(present))] if rng.random() < USELESS_SHARE else None
    shares = {m: None if m == useless else get_confusion_matrix(m)[label] for m in present}
    n = len(CLASSES)
    latents = {m: int(rng.integers(n) if p is None else rng.choice(n, p=p)) for m, p in shares.items()}
    cue_modality = find_cue_modality(useless, present, cue) if useless else None
    return GroundTruth(key, label, task, latents, useless, cue_modality)


@dataclass(frozen=True)
class _SubjectTraits:
    """How one subject looks, sounds and wears the cap."""

    scalp: render.ScalpTraits
    voice: render.VoiceTraits
    face: render_face.FaceTraits


def _make_rng(spec: SyntheticSpec, subject_number: int, key: int, stream: int) -> np.random.Generator:
    """Counted randomness: a recording's signal does not depend on what was drawn before it."""
    return np.random.default_rng([spec.seed, subject_number, key, stream])


def _draw_subject_traits(spec: SyntheticSpec, subject_number: int) -> _SubjectTraits:
    scalp, voice, face = (_make_rng(spec, subject_number, 0, stream) for stream in range(3))
    hard = spec.is_hard
    return _SubjectTraits(
        render.draw_scalp(scalp, hard=hard), render.draw_voice(voice, hard=hard), render_face.draw_face(face, hard=hard)
    )


def _write_mat73(path: Path, key: str, values: np.ndarray) -> None:
    """MATLAB v7.3: HDF5 behind a 512-byte header. MATLAB is column-major, so the file's shape is reversed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset(key, data=values.T).attrs["MATLAB_class"] = np.bytes_("single")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, synthetic".ljust(116) + bytes(8) + b"\x00\x02IM")


def _write_eeg(
    folder: Path, spec: SyntheticSpec, subject_number: int, traits: _SubjectTraits, recordings: Sequence[GroundTruth]
) -> None:
    shape = (spec.seconds * spec.eeg_hz, len(render.ELECTRODES), len(recordings))
    values = np.empty(shape, np.float32, order="F")  # the order of a .mat file: no second copy on writing
    label = np.zeros((2 * len(CLASSES), len(recordings)))
    for truth in recordings:
        column = truth.key - 1
        latent_class, has_cue = truth.latents["eeg"], truth.cue_modality == "eeg"
        rng = _make_rng(spec, subject_number, truth.key, 0)
        values[:, :, column] = render.render_eeg(
            traits.scalp,
            latent_class,
            has_cue,
            rng,
            hz=spec.eeg_hz,
            seconds=spec.seconds,
            hard=spec.is_hard,
        )
        label[2 * truth.label + (truth.task == SPEAKING), column] = 1
    key = "seg" if subject_number % 4 == 1 else "seg1"  # about the proportion in EAV: 11 subjects and 31
    if spec.mat_version == "5":
        scipy.io.savemat(folder / f"subject{subject_number}_eeg.mat", {key: values})
    else:
        _write_mat73(folder / f"subject{subject_number}_eeg.mat", key, values)
    scipy.io.savemat(folder / f"subject{subject_number}_eeg_label.mat", {"label": label})


def _write_audio(
    folder: Path, spec: SyntheticSpec, subject_number: int, traits: _SubjectTraits, recordings: Sequence[GroundTruth]
) -> None:
    spoken = [truth for truth in recordings if "audio" in truth.latents]
    numbers = _count_trial_numbers(spoken[::-1])  # backwards: a reader that joins by Trial_NN must not get away with it
    suffix = "Aud" if subject_number % 2 else "aud"
    for truth in spoken:
        name = f"{truth.key:03d}_Trial_{numbers[truth.key]:02d}_{truth.task}_{CLASSES[truth.label]}_{suffix}.wav"
        latent_class, has_cue = truth.latents["audio"], truth.cue_modality == "audio"
        rng = _make_rng(spec, subject_number, truth.key, 1)
        sound = render.render_audio(
            traits.voice,
            latent_class,
            has_cue,
            rng,
            hz=spec.audio_hz,
            seconds=spec.seconds,
            hard=spec.is_hard,
        )
        soundfile.write(folder / name, sound, spec.audio_hz, subtype="PCM_16")


def write_video(
    folder: Path, spec: SyntheticSpec, subject_number: int, traits: _SubjectTraits, recordings: Sequence[GroundTruth]
) -> None:
    """Render a film of each recording into a folder, named as in EAV."""
    numbers = _count_trial_numbers(recordings)
    for truth in recordings:
        name = f"{truth.key:03d}_Trial_{numbers[truth.key]:02d}_{truth.task}_{CLASSES[truth.label]}.mp4"
        latent_class, has_cue = truth.latents["video"], truth.cue_modality == "video"
        rng = _make_rng(spec, subject_number, truth.key, 2)
        frames = render_face.render_video(
            traits.face,
            latent_class,
            has_cue,
            rng,
            size=spec.video_size,
            fps=spec.fps,
            seconds=spec.seconds,
            hard=spec.is_hard,
        )
        render_face.encode_video(folder / name, frames, size=spec.video_size, fps=spec.fps)


def _count_trial_numbers(recordings: Sequence[GroundTruth]) -> dict[int, int]:
    """Key -> Trial_NN: a count within class and task, in the order given."""
    counts: Counter[tuple[int, str]] = Counter()
    numbers = {}
    for truth in recordings:
        counts[truth.label, truth.task] += 1
        numbers[truth.key] = counts[truth.label, truth.task]
    return numbers


def _build_metadata(spec: SyntheticSpec, recordings: Sequence[GroundTruth]) -> dict[str, object]:
    return {
        "renderer": RENDERER_VERSION,
        "spec": {**asdict(spec), "video_size": list(spec.video_size), "n_subjects": None},  # their number may grow
        "recordings": [asdict(truth) for truth in recordings],
    }


def _is_generated(folder: Path, spec: SyntheticSpec) -> bool:
    """Whether this subject is already there. Folders are renamed into place, so one that exists is complete.

    Raises:
        ConfigError: The folder holds something else.
    """
    if not folder.exists():
        return False
    path = folder / SYNTHETIC_MARKER
    if not path.is_file():
        raise ConfigError(f"{folder} exists and was not generated by this program; choose another root")
    expected = _build_metadata(spec, ())
    try:
        metadata = json.loads(path.read_bytes())
        # People of before there were kinds are plain.
        is_same = (
            metadata["renderer"] == expected["renderer"] and {"kind": "plain", **metadata["spec"]} == expected["spec"]
        )
    except (ValueError, TypeError, LookupError):
        is_same = False
    if not is_same:
        raise ConfigError(
            f"{folder} was generated with other settings, see {SYNTHETIC_MARKER}; remove it or choose another root"
        )
    return True


def generate_subject(root: str | os.PathLike[str], subject_number: int, spec: SyntheticSpec) -> None:
    """Write one subject, or do nothing where the same spec has written it before.

    Files go to a hidden sibling folder that is renamed to `subjectN` last, so an interrupted run leaves no half
    subject behind. Deterministic in (spec.seed, subject_number).

    Args:
        subject_number: 1-based.
    Raises:
        ConfigError: `subjectN` exists, but is not what this spec would write.
    """
    if subject_number < 1:
        raise ConfigError(f"subject_number is {subject_number}; subjects count from 1")
    folder = Path(root) / f"subject{subject_number}"
    if _is_generated(folder, spec):
        return
    partial_folder = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial_folder, ignore_errors=True)  # left by an interrupted run
    recordings, traits = draw_ground_truths(spec, subject_number), _draw_subject_traits(spec, subject_number)
    for name, write in (("EEG", _write_eeg), ("Audio", _write_audio), ("Video", write_video)):
        (partial_folder / name).mkdir(parents=True)
        write(partial_folder / name, spec, subject_number, traits, recordings)
    (partial_folder / SYNTHETIC_MARKER).write_text(json.dumps(_build_metadata(spec, recordings)))
    os.replace(partial_folder, folder)


def generate_dataset(
    root: str | os.PathLike[str],
    spec: SyntheticSpec,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write all subjects, or those that are still missing.

    Args:
        workers: Processes. They are spawned, not forked: the caller may hold threads.
        progress: Called with (subjects done, subjects in all).
    Raises:
        ConfigError: A `subjectN` exists that this spec would not write.
    """
    Path(root).mkdir(parents=True, exist_ok=True)
    for n_done, _ in enumerate(_generate_subjects(root, spec, workers), start=1):
        if progress:
            progress(n_done, spec.n_subjects)


def _generate_subjects(root: str | os.PathLike[str], spec: SyntheticSpec, workers: int) -> Iterator[None]:
    """Write one subject after the other; yields after each."""
    numbers = range(1, spec.n_subjects + 1)
    if workers <= 1:
        for number in numbers:
            yield generate_subject(root, number, spec)
        return
    generate = partial(generate_subject, root, spec=spec)
    yield from map_in_processes(generate, numbers, min(workers, spec.n_subjects))


def main(arguments: Sequence[str] | None = None) -> None:
    """Generate from the command line and print what an ideal observer would reach."""
    default = SyntheticSpec()
    parser = argparse.ArgumentParser(
        prog="python -m eav_ray.data.synthetic.generate", description="Generate data in the layout of EAV."
    )
    parser.add_argument("root", help="folder for subject1, subject2, ...")
    for name in ("n_subjects", "per_class", "seconds", "eeg_hz", "audio_hz", "fps", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(default, name))
    parser.add_argument("--video-size", type=int, nargs=2, default=default.video_size, metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--listening", action="store_true", help="add as many listening recordings, without audio")
    parser.add_argument("--mat-version", choices=("5", "7.3"), default=default.mat_version)
    parser.add_argument("--kind", choices=("plain", "hard"), default=default.kind)
    parser.add_argument("--workers", type=int, default=1)
    options = vars(parser.parse_args(arguments))
    root, workers = options.pop("root"), options.pop("workers")
    spec = SyntheticSpec(**{**options, "video_size": tuple(options["video_size"])})
    print(
        f"generating {format_count(spec.n_subjects, 'subject')} with "
        f"{format_count(spec.recordings_per_subject, 'recording')} each in {root}"
    )
    generate_dataset(
        root, spec, workers=workers, progress=lambda done, total: print(f"generated {done} of {total}", flush=True)
    )
    unimodal = ", ".join(f"{m} {bayes_accuracy([m]):.3f}" for m in MODALITIES)
    print(f"best possible accuracy (speaking): {unimodal}, together {bayes_accuracy(MODALITIES):.3f}")


if __name__ == "__main__":
    main()

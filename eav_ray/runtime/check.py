"""What a data set holds, and what of it cannot be used."""

from collections import Counter
from dataclasses import dataclass

from eav_ray.config import Experiment
from eav_ray.data import sets
from eav_ray.data.manifest import Problem, Recording


@dataclass(frozen=True)
class Found:
    classes: tuple[str, ...]
    recordings: tuple[Recording, ...]
    problems: tuple[Problem, ...]


def check(experiment: Experiment) -> Found:
    dataset, listing = sets.scan(experiment.data)
    return Found(dataset.classes, listing.recordings, listing.problems)


def report(found: Found) -> str:
    """A line a person: recordings per class and modality; then a line a problem."""
    by_subject: dict[str, list[Recording]] = {}
    for recording in found.recordings:
        by_subject.setdefault(recording.subject, []).append(recording)
    head = f"{'person':14}{'recordings':>11}" + "".join(f"{c[:10]:>11}" for c in found.classes)
    lines = [head + f"{'eeg':>7}{'audio':>7}{'video':>7}"]
    for subject, recordings in by_subject.items():
        classes = Counter(r.label for r in recordings)
        counts = "".join(f"{classes[k]:>11}" for k in range(len(found.classes)))
        present = "".join(f"{sum(getattr(r, m) is not None for r in recordings):>7}" for m in ("eeg", "audio", "video"))
        lines.append(f"{subject:14}{len(recordings):>11}{counts}{present}")
    lines.append(f"{len(by_subject)} people, {len(found.recordings)} recordings, {len(found.problems)} problems")
    return "\n".join([*lines, *problem_lines(found.problems)])


def problem_lines(problems: tuple[Problem, ...]) -> list[str]:
    """A line each: whose, and why; the file where the reason does not name it already."""
    lines = []
    for p in problems:
        where = " ".join(w for w in (p.subject, p.recording, "" if p.file and p.file in p.reason else p.file) if w)
        lines.append(f"  {where}: {p.reason}")
    return lines

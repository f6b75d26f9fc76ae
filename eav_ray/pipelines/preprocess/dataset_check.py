"""What a data set holds, and what of it cannot be used."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from eav_ray.config import MODALITIES, Experiment, order_modalities
from eav_ray.data.datasets import registry
from eav_ray.data.io.stated_durations import describe_long_clips, read_some_durations_s
from eav_ray.data.recordings import Problem, Recording


@dataclass(frozen=True)
class DatasetCheck:
    classes: tuple[str, ...]
    recordings: tuple[Recording, ...]
    problems: tuple[Problem, ...]
    modalities: tuple[str, ...]  # recorded ones, and given features that the experiment uses
    remarks: tuple[str, ...] = ()  # what is odd but used


def check_dataset(experiment: Experiment) -> DatasetCheck:
    dataset, listing = registry.scan_dataset(experiment.data, experiment.preprocessing.features)
    modalities = order_modalities({*MODALITIES, *experiment.data.modalities})
    remarks = _list_long_clips(listing.recordings)
    return DatasetCheck(dataset.classes, listing.recordings, listing.problems, tuple(modalities), remarks)


def _list_long_clips(recordings: Sequence[Recording]) -> tuple[str, ...]:
    """A line for each modality some of whose files state that they last far longer than the others."""
    lines: list[str] = []
    for modality in ("audio", "video"):
        paths = {r.id: path for r in recordings if (path := r.get_source(modality)) is not None}
        lines.append(describe_long_clips(read_some_durations_s(paths), modality))
    return tuple(line for line in lines if line)


def format_dataset_check(result: DatasetCheck) -> str:
    """A line a subject: recordings per class and modality; then a line a problem."""
    by_subject: dict[str, list[Recording]] = {}
    for recording in result.recordings:
        by_subject.setdefault(recording.subject, []).append(recording)
    header = f"{'subject':14}{'recordings':>11}" + "".join(f"{c[:10]:>11}" for c in result.classes)
    lines = [header + "".join(f"{m[:12]:>{max(7, len(m[:12]) + 1)}}" for m in result.modalities)]
    for subject, recordings in by_subject.items():
        classes = Counter(r.label for r in recordings)
        counts = "".join(f"{classes[k]:>11}" for k in range(len(result.classes)))
        present = "".join(
            f"{sum(r.get_source(m) is not None for r in recordings):>{max(7, len(m[:12]) + 1)}}"
            for m in result.modalities
        )
        lines.append(f"{subject:14}{len(recordings):>11}{counts}{present}")
    lines.append(f"{len(by_subject)} subjects, {len(result.recordings)} recordings, {len(result.problems)} problems")
    return "\n".join([*lines, *format_problems(result.problems), *(f"  {remark}" for remark in result.remarks)])


def format_problems(problems: tuple[Problem, ...]) -> list[str]:
    """A line each: whose, and why; the file where the reason does not name it already."""
    lines = []
    for p in problems:
        where = " ".join(w for w in (p.subject, p.recording, "" if p.file and p.file in p.reason else p.file) if w)
        lines.append(f"  {where}: {p.reason}")
    return lines

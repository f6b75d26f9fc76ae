"""From the section `data` of an experiment to a reader and its recordings."""

from dataclasses import replace

from eav_ray.config import DataConfig
from eav_ray.data.cremad import CREMAD
from eav_ray.data.eav import EAV
from eav_ray.data.eegmat import EEGMAT
from eav_ray.data.manifest import LISTENING, DataSet, Listing, Problem
from eav_ray.data.ravdess import RAVDESS
from eav_ray.data.table import Table
from eav_ray.errors import ConfigError, suggest_nearest


def open_data(data: DataConfig) -> DataSet:
    """The reader that `data.set` names.

    Raises:
        ConfigError: `data.root` is empty, or a modality is asked for that the set does not offer.
        DataError: `data.root` is not such a data set.
    """
    if not data.root:
        raise ConfigError(f"data.root is empty; set data.root=... to the folder (manifest: the file) of {data.dataset}")
    match data.dataset:
        case "eav":
            dataset = EAV(data.root, data.tasks, data.subjects)
        case "ravdess":
            dataset = RAVDESS(data.root)
        case "cremad":
            dataset = CREMAD(data.root)
        case "eegmat":
            dataset = EEGMAT(data.root)
        case "manifest":
            dataset = Table(data.root)
    absent = [m for m in data.modalities if m not in dataset.modalities]
    if absent:
        offered = ",".join(dataset.modalities)
        raise ConfigError(
            f"data.modalities asks for {', '.join(absent)}, but {data.dataset} in {data.root} offers {offered}; "
            f"set data.modalities=[{offered}] or fewer"
        )
    return dataset


def scan(data: DataConfig) -> tuple[DataSet, Listing]:
    """Open and list, keeping `data.subjects`, and of their recordings those with any of `data.modalities`.

    Listening recordings are kept only where `data.tasks` names them.

    Raises:
        ConfigError: As `open_data`; or `data.subjects` names someone whom the set does not have.
        DataError: As `open_data`.
    """
    dataset = open_data(data)
    listing = dataset.scan()
    subjects = {r.subject for r in listing.recordings} | {p.subject for p in listing.problems}
    if not subjects.issuperset(data.subjects):
        _, everyone = scan(replace(data, subjects=()))
        _refuse_unknown(data.subjects, [r.subject for r in everyone.recordings])
    # Only listening is ever unwanted: other sets have tasks of their own, which data.tasks does not name.
    unwanted = {LISTENING} - set(data.tasks)
    recordings = []
    problems = [p for p in listing.problems if not data.subjects or p.subject in data.subjects]
    for r in listing.recordings:
        if (data.subjects and r.subject not in data.subjects) or r.task in unwanted:
            continue
        if any(getattr(r, m) is not None for m in data.modalities):
            recordings.append(r)
        elif r.task != LISTENING:  # a listening recording has no audio, which is no defect
            reason = f"has none of {', '.join(data.modalities)}; left out"
            problems.append(Problem(r.subject, r.recording, "", reason))
    return dataset, Listing(tuple(recordings), tuple(problems))


def eeg_channels(dataset: DataSet, listing: Listing) -> int:
    """Number of EEG channels of a data set, without reading signals where the reader knows; 0 where it has no EEG.

    Raises:
        DataError: Not one EEG file of a user's table can be opened.
    """
    if isinstance(dataset, EAV | EEGMAT | Table):
        return len(dataset.channels)
    first = next((r for r in listing.recordings if r.eeg is not None), None)
    return 0 if first is None else len(dataset.read_eeg(first).channels)


def _refuse_unknown(wanted: tuple[str, ...], subjects: list[str]) -> None:
    known = list(dict.fromkeys(subjects))
    shown = ", ".join(known) if len(known) <= 8 else f"{', '.join(known[:4])}, ..., {known[-1]} ({len(known)} people)"
    for name in wanted:
        if name not in known:
            raise ConfigError(
                f'data.subjects: nobody is called "{name}"; allowed are {shown}{suggest_nearest(name, known)}'
            )

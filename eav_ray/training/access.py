"""What a training may look at of a subject: the access level (`split.access`). Runs without torch."""

from collections.abc import Iterable

from eav_ray.config import Experiment, digest
from eav_ray.data.splits import Split
from eav_ray.words import format_count


def list_split_recordings(split: Split, further: Iterable[str] = ()) -> tuple[str, ...]:
    """List all recordings of a split, and others that are embedded with it, sorted."""
    return tuple(sorted({*split.train, *split.validation, *split.test, *further}))


def digest_access(experiment: Experiment, split: Split, further: Iterable[str]) -> str:
    """Hash what the statistics of the training subjects depend on; empty where no encoder normalises within subjects.

    Recordings of subjects whom nothing is trained on do not change a weight.
    """
    if not experiment.list_normalised_modalities():
        return ""
    subjects = {recording.split("/")[0] for recording in split.train}
    recordings = [r for r in list_split_recordings(split, further) if r.split("/")[0] in subjects]
    return digest(experiment.split.access, experiment.split.access_recordings, recordings)


def describe_access(experiment: Experiment, protocol: str = "") -> str:
    """Describe what is known of a tested subject: the access level, and what makes use of it.

    Args:
        protocol: That of the split, which may be another than the experiment's.
    """
    split, settings = experiment.split, experiment.list_transductive_settings()
    first = f"the first {format_count(split.access_recordings, 'recording')} of a tested subject"
    meanings = {
        "source_only": "nothing of a tested subject but the recording that is predicted",
        "unlabelled_block": "all recordings of a tested subject, without labels",
        "unlabelled_first_n": f"{first}, without labels, which are scored too",
        "labelled_k": f"{first} with their labels, which are never scored",
    }
    used = f", by {' and '.join(settings)}" if settings else ""
    if not settings and split.access.startswith("unlabelled"):
        used = ", of which this model makes no use"
    if protocol == "adapted" and split.access != "labelled_k":
        used += "; and some recordings with labels, which are never scored"
    return f"{split.access}: {meanings[split.access]}{used}"

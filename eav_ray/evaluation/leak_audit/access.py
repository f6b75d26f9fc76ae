"""The check of what was known of tested subjects: no more than the access level declares."""

from collections.abc import Sequence

from eav_ray.config import Experiment
from eav_ray.data.splits import CROSS_SUBJECT_PROTOCOLS, Split
from eav_ray.evaluation.leak_audit.checks import LeakCheck, describe_names, judge
from eav_ray.words import format_count

ACCESS = "access to tested subjects"  # name of a check
MAX_ACCESS = {"source_only": 0, "unlabelled_first_n": 1, "unlabelled_block": 2, "labelled_k": 1}  # of unlabelled ones


def audit_access(experiment: Experiment, split: Split, scored: Sequence[str]) -> LeakCheck:
    """Hold what the model uses of a tested subject, and the labels that it was trained on, against the level.

    Args:
        experiment: Of the checkpoint.
        split: Of the checkpoint, its test side what is scored.
        scored: The recordings whose scores are reported.
    """
    access = experiment.split
    settings, transductive = experiment.list_transductive_settings(), experiment.list_transductive_preprocessing()
    problems: list[str] = []
    if settings and MAX_ACCESS[access.access] < (2 if transductive else 1):
        problems.append(f"{' and '.join(settings)} looks at more than split.access={access.access} allows")
    tested = {recording.split("/")[0] for recording in scored}
    is_undeclared_adaptation = split.protocol == "adapted" and access.access == "source_only"
    labelled: dict[str, list[str]] = {}
    for recording in (*split.train, *split.validation):
        subject = recording.split("/")[0]
        if subject in tested:
            labelled.setdefault(subject, []).append(recording)
    if access.access == "labelled_k":
        too_many = [s for s, known in labelled.items() if len(known) > access.access_recordings]
        if too_many:
            problems.append(
                f"more than split.access_recordings={access.access_recordings} labelled recordings of "
                f"{describe_names(set(too_many))} were trained on"
            )
    elif labelled and (split.protocol in CROSS_SUBJECT_PROTOCOLS or is_undeclared_adaptation):
        problems.append(
            f"labelled recordings of {describe_names(set(labelled))} were trained on, which "
            f"split.access={access.access} does not allow"
        )
    used = f"by {' and '.join(settings)}" if settings else "of which nothing makes use"
    n_labelled = sum(map(len, labelled.values()))
    detail = (
        f"{access.access}, {used}; {format_count(n_labelled, 'labelled recording')} of tested subjects were trained on"
    )
    return judge(ACCESS, "; ".join(problems), detail)

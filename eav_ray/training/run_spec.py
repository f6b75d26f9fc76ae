"""What a training is, before it runs: its parts, its key, its place in a queue. Runs without torch."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

from eav_ray.config import EncoderOptimConfig, Experiment, OptimConfig, digest
from eav_ray.config.digests import EncodedJSON, HashedParts, encode_parts
from eav_ray.data.splits import Split
from eav_ray.storage import hash_content
from eav_ray.training.access import digest_access

RUN_FORMAT = 1  # raise when what a training computes changes: what was trained before does not count as finished then
FEATURES_FORMAT = 1  # raise when what is kept of frozen encoders changes


# By which a candidate, or a checkpoint of a run, is the best: the balanced accuracy of recordings, or of numbers the
# mean CCC (`training.metrics.compute_scores`).
SELECTION_METRIC = "validation_score"


@dataclass(frozen=True)
class Run:
    """One training.

    `encoder`: one modality alone, then its embeddings. `fusion`: on the embeddings of frozen encoders. `joint`: all
    encoders and the fusion together, from fresh or published weights, or from a fusion run's.
    """

    kind: Literal["encoder", "fusion", "joint"]
    experiment: Experiment
    split: Split
    data_digest: str  # digest of the shards' content
    encoder_keys: dict[str, str] = field(default_factory=dict)  # fusion: key of each modality's encoder run
    embedded_recordings: tuple[str, ...] = ()  # encoder: recordings whose embeddings are wanted; fusion: those it reads

    init_from: str = ""  # joint: key of the run whose weights it starts from, or the path of a checkpoint
    init_commit_hash: str = ""  # of that checkpoint's COMMIT
    # Of a final model: what a protocol found on subjects whom its own models never saw (`evaluation.expected_result`).
    expected_result: dict[str, Any] = field(default_factory=dict)

    @property
    def optim(self) -> OptimConfig:
        e = self.experiment
        if self.kind == "encoder":
            return e.train.encoders[e.data.modalities[0]]
        if self.init_commit_hash:
            return e.train.adaptation
        return e.train.joint if self.init_from else e.optim

    @property
    def weighs_classes(self) -> bool:
        """Whether the loss weighs classes: as the experiment says, or where those of the training rows are unequal."""
        chosen = self.optim.class_weights
        return self.split.unequal_classes if chosen == "auto" else chosen

    @property
    def frozen_epochs(self) -> int:
        """Epochs that train a head on an encoder that keeps its published weights; none where there are none."""
        e, optim = self.experiment, self.optim
        if not isinstance(optim, EncoderOptimConfig) or not getattr(e.model[e.data.modalities[0]], "weights", ""):
            return 0
        return optim.frozen_epochs

    @property
    def epochs(self) -> int:
        return self.frozen_epochs + self.optim.epochs

    @property
    def phases(self) -> list["Phase"]:
        optim, n_frozen = self.optim, self.frozen_epochs
        phases = [Phase(n_frozen, self.epochs, optim, encoders_frozen=optim.encoder_lr_scale == 0)]
        if n_frozen and isinstance(optim, EncoderOptimConfig):
            phases.insert(
                0, Phase(0, n_frozen, replace(optim, lr=optim.frozen_lr, epochs=n_frozen), encoders_frozen=True)
            )
        return phases

    @cached_property  # it is asked for often, and hashes all training rows
    def key(self) -> str:
        """Everything that the weights depend on, and nothing else: equal keys are trained once.

        Validation and test rows are not in it, training rows are.
        """
        optim = replace(self.optim, class_weights=self.weighs_classes)
        settings = _encode_settings(_Same(self.experiment), self.kind, optim, bool(self.frozen_epochs))
        rows = _hash_rows(self.kind, self.data_digest, self.split.train)
        access = digest_access(self.experiment, self.split, self.embedded_recordings)
        parts = [settings, self.encoder_keys, self.init_commit_hash or self.init_from, access]
        # What a final model says of itself depends on it, and its key is never that of a fold.
        parts += [self.expected_result["source"]] if self.expected_result else []
        return f"{self.kind}-{rows.digest(*parts)}"

    @property
    def features_prefix(self) -> str:
        """Where in the results store what its encoder makes of all windows lies; empty where training changes it.

        Of an encoder that keeps its published weights that is the same whoever is trained on: it is computed once, and
        only a head is trained. Augmentation would make it another in each epoch.
        """
        e, optim = self.experiment, self.optim
        if self.kind != "encoder" or optim.encoder_lr_scale or optim.mixup:
            return ""
        (m,) = e.data.modalities
        encoder = e.model[m]
        section = _section_to_dict(encoder)
        if not section.get("weights") or encoder.augments or encoder.reads_training_rows:
            return ""
        section["weights"] = hash_content(section["weights"])
        preprocessing = [e.preprocessing.window_s, vars(e.preprocessing.get_section(m))]
        return f"features/{m}-{digest(FEATURES_FORMAT, self.data_digest, preprocessing, section, e.runtime.precision)}"

    @property
    def title(self) -> str:
        e = self.experiment
        return e.data.modalities[0] if self.kind == "encoder" else self.kind

    @property
    def dependencies(self) -> tuple[str, ...]:
        """Keys of the runs that must be finished before this one can start."""
        return (
            *self.encoder_keys.values(),
            *([self.init_from] if self.init_from and not self.init_commit_hash else []),
        )


@dataclass(frozen=True, eq=False)
class _Same:
    """An experiment that equals none but itself: one object is of all folds."""

    experiment: Experiment

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.experiment is self.experiment

    def __hash__(self) -> int:
        return id(self.experiment)


@lru_cache(maxsize=1024)
def _hash_rows(kind: str, data_digest: str, train: tuple[str, ...]) -> HashedParts:
    return HashedParts(RUN_FORMAT, kind, data_digest, sorted(train))


@lru_cache(maxsize=64)
def _encode_settings(of: _Same, kind: str, optim: OptimConfig, has_frozen_epochs: bool) -> EncodedJSON:
    """Encode what a key holds of an experiment."""
    e = of.experiment
    if isinstance(optim, EncoderOptimConfig) and not has_frozen_epochs:
        optim = replace(optim, frozen_epochs=0, frozen_lr=EncoderOptimConfig().frozen_lr)
    preprocessing: dict[str, Any] = {m: vars(e.preprocessing.get_section(m)) for m in e.data.modalities}
    models = {m: _section_to_dict(e.model[m]) for m in e.data.modalities}
    for section in models.values():
        if section.get("weights"):
            section["weights"] = hash_content(section["weights"])
    return encode_parts(
        e.seed,
        e.data.labels,
        e.runtime.precision,
        optim,
        preprocessing | {"window_s": e.preprocessing.window_s},
        models,
        None if kind == "encoder" else _section_to_dict(e.fusion),
    )


def _section_to_dict(section: Any) -> dict[str, Any]:
    """What a section of an experiment says, and the revision of its kind."""
    return {**vars(section), "revision": section.revision}


@dataclass(frozen=True)
class Phase:
    """A part of a run that has one optimizer and one schedule."""

    first_epoch: int  # epoch
    end_epoch: int  # the epoch after it
    optim: OptimConfig  # with the learning rate and number of epochs of this part
    encoders_frozen: bool  # whether encoders stay as they are


@dataclass(frozen=True)
class Progress:
    key: str
    title: str
    epoch: float  # with the part of one that is under way
    epochs: int
    step: int  # over all epochs
    metrics: dict[
        str, float
    ]  # train_loss, windows_per_s, data_wait_fraction, checkpoint_pause_s; validation_* where measured
    damaged_checkpoints: tuple[str, ...] = ()  # a line for each checkpoint that was skipped when the run was taken up
    timestamp: float = field(default_factory=time.time)


def plan_encoder_run(
    experiment: Experiment, modality: str, split: Split, data_digest: str, embedded_recordings: tuple[str, ...]
) -> Run:
    """The training of one encoder on the training rows of a split, and nothing else of it."""
    unimodal = _select_modality(experiment, modality)
    return Run("encoder", unimodal, split, data_digest, embedded_recordings=embedded_recordings)


def _select_modality(experiment: Experiment, modality: str) -> Experiment:
    return replace(experiment, data=replace(experiment.data, modalities=(modality,)))


def plan_fusion_run(
    experiment: Experiment, split: Split, data_digest: str, embedded_recordings: tuple[str, ...]
) -> Run:
    return _plan_staged_runs(experiment, [split], data_digest, embedded_recordings)[0][-1]


def plan_joint_run(experiment: Experiment, split: Split, data_digest: str, embedded_recordings: tuple[str, ...]) -> Run:
    """All together, from where the staged training of the same split ends."""
    fusion = plan_fusion_run(experiment, split, data_digest, embedded_recordings)
    return Run("joint", experiment, split, data_digest, init_from=fusion.key)


def plan_adaptation_run(
    experiment: Experiment, split: Split, data_digest: str, checkpoint_path: str, commit_hash: str
) -> Run:
    """A finished checkpoint, trained on for one person.

    Args:
        experiment: The checkpoint's own, with `train.adaptation` and the runtime of now.
        split: What `data.splits.make_adaptation_split` returns.
        checkpoint_path, commit_hash: Where the checkpoint lies, and the hash of its COMMIT.
    """
    return Run("joint", experiment, split, data_digest, init_from=checkpoint_path, init_commit_hash=commit_hash)


def plan_runs(
    experiment: Experiment, split: Split, data_digest: str, *, embedded_recordings: tuple[str, ...] = ()
) -> list[Run]:
    """The trainings that one split needs; the last one is the result.

    Args:
        data_digest: Digest of the shards' content.
        embedded_recordings: Recordings whose embeddings are kept; those that the split trains and validates on, where
            none are named.
    """
    return plan_runs_of_splits(experiment, [split], data_digest, embedded_recordings=embedded_recordings)[0]


def plan_runs_of_splits(
    experiment: Experiment, splits: Sequence[Split], data_digest: str, *, embedded_recordings: tuple[str, ...] = ()
) -> list[list[Run]]:
    """`plan_runs` of each split."""
    e = experiment
    if len(e.data.modalities) > 1 and e.train.mode == "end_to_end":
        return [[Run("joint", e, split, data_digest)] for split in splits]
    if len(e.data.modalities) == 1:
        return [[plan_encoder_run(e, e.data.modalities[0], split, data_digest, ())] for split in splits]
    staged = _plan_staged_runs(e, splits, data_digest, embedded_recordings)
    if e.train.mode == "staged_then_joint":
        return [[*runs, Run("joint", e, runs[-1].split, data_digest, init_from=runs[-1].key)] for runs in staged]
    return staged


def _plan_staged_runs(
    e: Experiment, splits: Sequence[Split], data_digest: str, embedded_recordings: tuple[str, ...]
) -> list[list[Run]]:
    """The encoders of each split, and then the fusion."""
    unimodal = {m: _select_modality(e, m) for m in sorted(e.data.modalities)}
    planned: list[list[Run]] = []
    for split in splits:
        embedded = embedded_recordings or tuple(sorted({*split.train, *split.validation}))
        encoders = {m: Run("encoder", one, split, data_digest, {}, embedded) for m, one in unimodal.items()}
        keys = {m: run.key for m, run in encoders.items()}
        planned.append([*encoders.values(), Run("fusion", e, split, data_digest, keys, embedded)])
    return planned


def list_needed_recordings(runs: Iterable[Run]) -> tuple[str, ...]:
    """List the recordings that some of these runs trains, validates or embeds, sorted."""
    # Runs of one split share its sides, of which each is looked at once.
    sides = {ids for run in runs for ids in (run.split.train, run.split.validation, run.embedded_recordings)}
    return tuple(sorted({recording for ids in sides for recording in ids}))


@dataclass(frozen=True, order=True)
class Position:
    """The next step to take: `step` counts from 0 inside `epoch`."""

    epoch: int
    step: int

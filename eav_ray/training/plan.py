"""What a training is, before it runs: its parts, its key, its place in a queue. Runs without torch."""

from dataclasses import dataclass, field, replace
from typing import Literal

from eav_ray.config import Experiment, Optim, digest
from eav_ray.data.split import Split


@dataclass(frozen=True)
class Run:
    """One training.

    `encoder`: one modality alone, then its embeddings. `fusion`: on the embeddings of frozen encoders. `joint`: all
    encoders and the fusion together.
    """

    kind: Literal["encoder", "fusion", "joint"]
    experiment: Experiment
    split: Split
    data: str  # digest of the shards' content
    encoders: dict[str, str] = field(default_factory=dict)  # fusion: key of each modality's encoder run
    embed: tuple[str, ...] = ()  # encoder: recordings whose embeddings are wanted; fusion: those it reads

    @property
    def optim(self) -> Optim:
        e = self.experiment
        return getattr(e.train.encoders, e.data.modalities[0]) if self.kind == "encoder" else e.optim

    @property
    def key(self) -> str:
        """Everything that the weights depend on, and nothing else: equal keys are trained once.

        Validation and test rows are not in it, training rows are.
        """
        e = self.experiment
        common = (self.kind, self.data, sorted(self.split.train), e.seed, e.data.labels, e.runtime.bf16, self.optim)
        profile = {m: getattr(e.profile, m) for m in e.data.modalities} | {"window_s": e.profile.window_s}
        profile = {k: v if isinstance(v, int) else vars(v) for k, v in profile.items()}
        models = {m: vars(getattr(e.model, m)) for m in e.data.modalities}
        fusion = None if self.kind == "encoder" else e.fusion
        return f"{self.kind}-{digest(*common, profile, models, fusion, self.encoders)}"

    @property
    def title(self) -> str:
        e = self.experiment
        return e.data.modalities[0] if self.kind == "encoder" else self.kind


@dataclass(frozen=True)
class Progress:
    key: str
    title: str
    epoch: int
    epochs: int
    metrics: dict[str, float]
    damaged: tuple[str, ...] = ()  # a line for each checkpoint that was passed over when the run was taken up


def encoder_run(experiment: Experiment, modality: str, split: Split, data: str, embed: tuple[str, ...]) -> Run:
    """The training of one encoder on the training rows of a split, and nothing else of it."""
    alone = replace(experiment, data=replace(experiment.data, modalities=(modality,)))
    return Run("encoder", alone, split, data, embed=embed)


def fusion_run(experiment: Experiment, split: Split, data: str, embed: tuple[str, ...]) -> Run:
    encoders = {m: encoder_run(experiment, m, split, data, embed).key for m in sorted(experiment.data.modalities)}
    return Run("fusion", experiment, split, data, encoders, embed)

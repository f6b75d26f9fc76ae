"""Sections of an experiment on training, search and the cluster."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, field_validator, model_validator
from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT, define

Precision = Literal["fp32", "bf16", "fp16"]


def _check_class_weights(value: Any) -> bool | Literal["auto"]:
    if isinstance(value, bool) or value == "auto":
        return value
    raise ValueError(f"give auto, true or false, not {value!r}")


@dataclass(frozen=True, config=STRICT)
class OptimConfig:
    """AdamW with a linear warm-up; without weight decay it is Adam."""

    lr: float = define(3e-4, "peak learning rate", gt=0)
    weight_decay: float = define(0.01, "not applied to biases and norms; 0: plain Adam", ge=0)
    epochs: int = define(10, gt=0)
    batch: int = define(32, "global batch, windows; must be a multiple of runtime.workers", gt=0)
    warmup: float = define(0.1, "share of the steps that warm up", ge=0, le=1)
    schedule: Literal["cosine", "constant"] = define(
        "cosine", "after the warm-up the rate falls to zero along a cosine, or stays at its peak"
    )
    clip: float = define(1.0, "largest gradient norm; 0 for none", ge=0)
    label_smoothing: float = define(0.0, ge=0, lt=1)
    encoder_lr_scale: float = define(1.0, "learning rate of encoders, as a multiple of that of heads and fusion", ge=0)
    class_weights: Annotated[bool | Literal["auto"], PlainValidator(_check_class_weights)] = define(
        "auto",
        "weigh each class by the inverse of its training windows; auto: where training recordings of the classes "
        "are unequal in number",
    )
    mixup: float = define(0.0, "alpha of the Beta distribution by which windows are mixed; 0 for none", ge=0)


@dataclass(frozen=True, config=STRICT)
class EncoderOptimConfig(OptimConfig):
    """Of one encoder alone: published weights are first kept, under a head that learns, and then trained on."""

    frozen_epochs: int = define(
        0, "epochs before `epochs` that train the head alone; skipped without model weights", ge=0
    )
    frozen_lr: float = define(5e-4, "peak learning rate of those epochs", gt=0)
    trained_blocks: int = define(
        0, "only the last so many blocks of the encoder learn, and what follows them; 0: all of it", ge=0
    )
    lora_rank: int = define(
        0,
        "instead of the encoder's matrices, additions of this rank to those of its blocks learn (LoRA), in all of them "
        "or the last trained_blocks; 0: none",
        ge=0,
    )
    lora_alpha: float = define(16.0, "scale of these additions, times the rank", gt=0)
    layer_decay: float = define(
        1.0, "learning rate of each block, as a multiple of that of the block after it", gt=0, le=1
    )

    @model_validator(mode="after")
    def _check_learning(self) -> "EncoderOptimConfig":
        for key in ("trained_blocks", "lora_rank"):
            if not self.encoder_lr_scale and getattr(self, key):
                raise ValueError(
                    f"{key} is {getattr(self, key)}, but with encoder_lr_scale=0 nothing of the encoder learns; leave "
                    "one of them out"
                )
        return self


DEFAULT_ENCODER_OPTIMS = {
    "eeg": EncoderOptimConfig(lr=1e-4, epochs=100),
    "audio": EncoderOptimConfig(lr=5e-5, epochs=15, batch=32, frozen_epochs=10),
    "video": EncoderOptimConfig(lr=5e-5, epochs=15, batch=64, frozen_epochs=10),
}


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    mode: Literal["staged", "end_to_end", "staged_then_joint"] = define(
        "staged",
        "each encoder alone, then fusion on frozen encoders; all together from the start; or staged, and then all "
        "together from there",
    )
    encoders: dict[str, EncoderOptimConfig] = define(DEFAULT_ENCODER_OPTIMS, "the training of each encoder alone")
    joint: OptimConfig = define(OptimConfig(lr=5e-6, epochs=5), "the last part of staged_then_joint")
    adaptation: OptimConfig = define(
        OptimConfig(lr=3e-5, epochs=10, batch=8, encoder_lr_scale=0.0),
        "training on labelled recordings of a new person; with encoder_lr_scale=0 encoders stay as they are",
    )
    checkpoint_epochs: int = define(5, "a checkpoint to resume from every so many epochs", gt=0)
    checkpoint_steps: int = define(0, "and every so many steps; 0 for none", ge=0)
    checkpoint_minutes: float = define(10.0, "and when the last one is so many minutes old; 0 for none", ge=0)
    keep_checkpoints: int = define(
        2, "checkpoints that are kept while a training runs, beside the best by validation", gt=0
    )
    validate_epochs: int = define(
        0,
        "measure a fusion or joint training on its validation rows, and save it, every so many epochs; 0: only at the "
        "end. The result is the last epoch all the same",
        ge=0,
    )


@dataclass(frozen=True, config=STRICT)
class SearchDimension:
    """One dimension of a search space: either `choice`, or `low` and `high`."""

    choice: tuple[int | float | str, ...] = define((), "allowed values")
    low: float | None = define(None, "lower end of a range")
    high: float | None = define(None, "upper end of a range")
    log: bool = define(False, "search the range in its logarithm")

    @model_validator(mode="after")
    def _check_one_kind(self) -> "SearchDimension":
        ranged = self.low is not None and self.high is not None and self.low < self.high
        if bool(self.choice) == ranged:
            raise ValueError("give either choice: [...], or low: and high: with low < high")
        if self.log and ranged and (self.low or 0) <= 0:
            raise ValueError("a logarithmic range needs low > 0")
        return self


@dataclass(frozen=True, config=STRICT)
class SearchConfig:
    mode: Literal["fusion", "full"] = define(
        "fusion",
        "what a candidate trains: the fusion, on embeddings of encoders that are trained once; or everything, as "
        "train.mode says, by a group of runtime.workers of its own",
    )
    candidates: int = define(16, "how many sets of changes are tried", gt=0)
    ask_batch_size: int = define(4, "candidates that are suggested together; part of what makes it repeatable", gt=0)
    max_concurrent_trials: int = define(
        0,
        "workers that a batch of candidates is shared out to, with mode=full groups of workers: a cluster grows for "
        "them as far as its own limits let it. 0: as many as there is room for, by those limits where they are known",
        ge=0,
    )
    fusion_batch_size: int = define(64, "fusion trainings that are computed as one batch; 1: one after the other", gt=0)
    sampler: Literal["tpe", "random", "cmaes", "grid"] = define(
        "tpe", "Optuna's; cmaes draws what is no number at random; grid takes every combination of lists in turn"
    )
    cost: Literal["", "parameters", "gmac"] = define(
        "",
        "what is kept small beside a high score: the parameters of the whole model, or its multiplications for a "
        "window (10^9). The best candidates are then those that no other beats in both",
    )
    refit: int = define(1, "how many of the best candidates are trained again, on all training rows, and kept", gt=0)
    prune: bool = define(
        False,
        "train a candidate on no more folds once the mean of its scores lies below the median that candidates of "
        "earlier batches had on as many folds",
    )
    rungs: tuple[float, ...] = define(
        (),
        "shares of its epochs, as [0.25, 0.5], after which a fusion is compared in the same way, and left; with "
        "mode=fusion",
    )
    storage: str = define(
        "",
        "database of the study, as sqlite:///search.db or postgresql://user@host/name; empty: a journal in the "
        "results store",
    )

    @field_validator("rungs")
    @classmethod
    def _check_rungs(cls, rungs: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < look < 1 for look in rungs) or list(rungs) != sorted(set(rungs)):
            raise ValueError("give shares between 0 and 1 in ascending order, as [0.25, 0.5]")
        return rungs

    space: dict[str, SearchDimension] = Field(
        default_factory=lambda: {
            "fusion.heads": SearchDimension(choice=(1, 2, 4, 8)),
            "optim.lr": SearchDimension(low=1e-4, high=3e-3, log=True),
        },
        description="dotted key -> choice or range; keys under fusion. and optim., with mode=full under model. and "
        "train. too",
    )


def _check_gpus(value: Any) -> float | Literal["auto"]:
    if value == "auto":
        return "auto"
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < math.inf:
        raise ValueError(f"give auto, or a number that is 0 or more, not {value!r}")
    return number


@dataclass(frozen=True, config=STRICT)
class RuntimeConfig:
    address: str = define("", "Ray cluster to join (host:port); empty: RAY_ADDRESS, else a Ray of its own")
    workers: int = define(2, "training workers of a group, one process each", gt=0)
    min_workers: int = define(
        0, "a group goes on with as few as these when nodes are lost, and grows again; 0: always `workers`", ge=0
    )
    cpus_per_worker: float = define(1, gt=0)
    gpus_per_worker: Annotated[float | Literal["auto"], PlainValidator(_check_gpus)] = define(
        "auto",
        "auto: 1 where the nodes that are there, or that the autoscaler may add, have a GPU for each worker, else 0",
    )
    groups: int = define(1, "worker groups that pull runs from the queue side by side", gt=0)
    engine: Literal["deepspeed", "torch"] = define("deepspeed", "training engine")
    zero_stage: Literal[0, 1, 2, 3] = define(
        0,
        "what DeepSpeed's ZeRO splits between workers: nothing, optimizer state, gradients too, weights too. Each "
        "stage saves memory and costs time",
    )
    offload: bool = define(False, "keep the optimizer state in CPU memory; deepspeed with zero_stage 1 to 3")
    micro_batch: int = define(
        0,
        "windows that a worker computes at once; gradients of its share of the batch are accumulated. 0: the whole "
        "share at once",
        ge=0,
    )
    precision: Precision = define(
        "fp32",
        "compute in float32, bfloat16 or float16, this with a dynamic scale of the loss; weights and optimizer state "
        "stay in fp32",
    )
    gradient_checkpointing: bool = define(
        False, "compute activations of encoders again in the backward pass: less memory, more time"
    )
    dashboard: bool = define(False, "start Ray's dashboard with a local Ray, on 127.0.0.1")

    @model_validator(mode="after")
    def _check_min_workers(self) -> "RuntimeConfig":
        if self.min_workers > self.workers:
            raise ValueError(f"min_workers is {self.min_workers}, more than workers={self.workers}; use at most those")
        return self

    @property
    def gpus(self) -> float:
        """GPUs of a worker, of a runtime whose `gpus_per_worker` is a number (`distributed.connection`)."""
        assert self.gpus_per_worker != "auto", "connect to Ray first (distributed.connection): it chooses the number"
        return self.gpus_per_worker

    @property
    def min_group_size(self) -> int:
        return self.min_workers or self.workers

    def find_batch_problem(self, key: str, batch: int) -> str:
        """Why a group cannot share a global batch equally, whatever number of workers it may have; empty if it can."""
        indivisible = next((n for n in range(self.min_group_size, self.workers + 1) if batch % n), 0)
        if not indivisible:
            return ""
        unit = math.lcm(*range(self.min_group_size, self.workers + 1))
        problem = f"{key} is {batch}, which runtime.workers={self.workers} does not divide; use a multiple of {unit}"
        if self.min_workers:
            problem = (
                f"{key} is {batch}, which {indivisible} workers do not divide (runtime.min_workers={self.min_workers}, "
                f"runtime.workers={self.workers}); use a multiple of {unit}, or set runtime.min_workers=0"
            )
        return problem

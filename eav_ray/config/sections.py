"""One YAML file is one Experiment: frozen, typed, checked before anything starts.

The command line, the search and the tests change an experiment in one way only:
`override(experiment, {"optim.lr": 3e-4})`.
Runs without torch and without ray.
"""

from typing import Any

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT, DataConfig, Preprocessing, SplitConfig, define
from eav_ray.config.kinds import import_plugins
from eav_ray.config.modalities import MODALITIES
from eav_ray.config.model_sections import DEFAULT_FUSION, AnyFusionConfig, ModelSections, validate_models
from eav_ray.config.training_sections import OptimConfig, RuntimeConfig, SearchConfig, TrainConfig
from eav_ray.errors import suggest_nearest


@dataclass(frozen=True, config=STRICT)
class StoreConfig:
    shards: str = define("data/shards", "where preprocessing writes: a folder, s3:// or gs://")
    results: str = define(
        "results",
        "checkpoints, embeddings and result tables: a folder, s3:// or gs://; options follow, as "
        "s3://lab/eav?endpoint=http://minio:9000&region=eu",
    )
    exclusive: bool = define(
        True,
        "guard runs and searches in object stores by leases; false for a server that cannot write conditionally, on "
        "which two jobs then may overwrite each other",
    )
    cache: str = define("cache", "local folder of the memory-mapped windows of each node")
    cache_gb: float = define(200.0, "largest size of that folder, GiB", gt=0)
    weights: str = define(
        "weights", "folder that `eav weights fetch` fills, where published weights that have a name are looked up"
    )
    mlflow: str = define(
        "",
        "MLflow's tracking URI, which is told the curves of trainings: http://127.0.0.1:5000, "
        "sqlite:///results/mlflow.db; empty for none",
    )

    @model_validator(mode="after")
    def _check_mlflow_uri(self) -> "StoreConfig":
        if self.mlflow and "://" not in self.mlflow:
            raise ValueError(
                f"mlflow is {self.mlflow!r}; give a tracking URI, for example http://127.0.0.1:5000 or "
                "sqlite:///results/mlflow.db"
            )
        return self


@dataclass(frozen=True, config=STRICT)
class Experiment:
    """Hold all that one experiment is: its data, preprocessing, split, model, training, search, machine and stores.

    It is frozen. `load_experiment` makes one, from a YAML file and changes; `eav keys` lists its keys.
    """

    name: str = define("experiment", "names its folder of results", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = define(0, ge=0)
    plugins: tuple[str, ...] = define((), "modules that define further kinds of encoders, fusions and data sets")
    data: DataConfig = DataConfig()
    preprocessing: Preprocessing = Preprocessing()
    split: SplitConfig = SplitConfig()
    model: ModelSections = Field(
        default_factory=lambda: validate_models({}), description="the encoder of each modality"
    )
    fusion: AnyFusionConfig = DEFAULT_FUSION
    optim: OptimConfig = define(OptimConfig(), "the fusion's, or everything's in end_to_end")
    train: TrainConfig = TrainConfig()
    search: SearchConfig = SearchConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    store: StoreConfig = StoreConfig()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Import the plugins in every process that receives the experiment, so that it knows their kinds too."""
        import_plugins(state["plugins"])
        self.__dict__.update(state)

    def _list_unknown_modalities(self) -> list[str]:
        """List names of modalities that are neither recorded nor declared as given features, a line each."""
        known = [*MODALITIES, *self.preprocessing.features]
        places = {
            "data.modalities": self.data.modalities,
            "data.features": self.data.features,
            "model": self.model,
            "train.encoders": self.train.encoders,
        }
        problems = [
            f'"{place}.{name}" is not a key of an experiment{suggest_nearest(name, known)} (`eav keys` lists all keys)'
            if place != "data.modalities"
            else f"data.modalities names {name}; use {', '.join(known)}{suggest_nearest(name, known)}, or say under "
            f"preprocessing.features.{name} what the features of that name are"
            for place, names in places.items()
            for name in names
            if name not in known
        ]
        # A section that a file leaves out was filled in when it was read; Python can leave it out too.
        return problems + [
            f"{place}.{name} is missing; give a section of each name under preprocessing.features"
            for place in ("model", "train.encoders")
            for name in known
            if name not in places[place]
        ]

    def list_transductive_preprocessing(self) -> list[str]:
        """List settings of preprocessing that look at all recordings of a subject at once."""
        eeg = self.preprocessing.eeg
        settings = (("kind", eeg.kind, eeg.kind == "official"), ("align", eeg.align, eeg.align != "none"))
        used = settings if "eeg" in self.data.modalities else ()
        return [f"preprocessing.eeg.{key}={value}" for key, value, is_transductive in used if is_transductive]

    def list_transductive_settings(self) -> list[str]:
        """List the settings by which a model looks at other recordings of a tested subject, without labels."""
        normalised = self.list_normalised_modalities()
        return self.list_transductive_preprocessing() + [f"model.{m}.subject_normalisation" for m in normalised]

    def list_normalised_modalities(self) -> list[str]:
        """List the modalities whose encoders normalise within subjects, sorted."""
        return sorted(m for m in self.data.modalities if self.model[m].subject_normalisation != "none")

    def _list_access_problems(self) -> list[str]:
        """List keys that look at more of a tested subject than the access level declares, a line each."""
        problems: list[str] = []
        needs_all = self.list_transductive_preprocessing()
        if needs_all and self.split.access != "unlabelled_block":
            problems.append(
                f"{' and '.join(needs_all)} looks at all recordings of a subject, the tested ones included, but "
                f"split.access is {self.split.access}; declare it: split.access=unlabelled_block"
            )
        for m in self.list_normalised_modalities():
            section = self.model[m]
            if not section.normalises_subjects:
                problems.append(
                    f"model.{m}.kind={section.kind} has no features that can be normalised within subjects; set "
                    f"model.{m}.subject_normalisation=none"
                )
            elif self.split.access == "source_only":
                problems.append(
                    f"model.{m}.subject_normalisation={section.subject_normalisation} looks at recordings of the "
                    "tested subject, but split.access is source_only; declare it: split.access=unlabelled_block, or "
                    "unlabelled_first_n with split.access_recordings"
                )
        return problems

    def _list_fusion_problems(self) -> list[str]:
        """List what does not fit between the kind of fusion and what is predicted, a line each."""
        kind, has_numbers = self.fusion.kind, self.data.predicts_numbers
        if self.fusion.can_predict(numbers=has_numbers):
            return []
        if has_numbers:
            return [
                f"fusion.kind={kind} fuses classes, but data.targets names numbers; use mean, or one that is trained"
            ]
        return [f"fusion.kind={kind} fuses numbers, but data.targets.columns is empty; use product, or name columns"]

    @model_validator(mode="after")
    def _check_consistency(self) -> "Experiment":
        problems = self._list_unknown_modalities()
        if problems:
            raise ValueError("\n".join(problems))
        for m in sorted(self.data.modalities):
            problems += self.model[m].find_problems(self.preprocessing)
        if len(self.data.modalities) > 1:
            problems += self.fusion.find_problems([self.model[m].token_width for m in self.data.modalities])
            problems += self._list_fusion_problems()
        problems += self._list_access_problems()
        batches = {"optim.batch": self.optim.batch}
        if self.train.mode == "staged_then_joint":
            batches["train.joint.batch"] = self.train.joint.batch
        batches |= {f"train.encoders.{m}.batch": self.train.encoders[m].batch for m in self.data.modalities}
        for key, batch in batches.items():
            if problem := self.runtime.find_batch_problem(key, batch):
                problems.append(problem)
        if self.runtime.offload and (self.runtime.engine != "deepspeed" or not self.runtime.zero_stage):
            problems.append(
                f"runtime.offload needs runtime.engine=deepspeed and runtime.zero_stage of 1, 2 or 3; they are "
                f"{self.runtime.engine} and {self.runtime.zero_stage}"
            )
        allowed = ("fusion.", "optim.") if self.search.mode == "fusion" else ("fusion.", "optim.", "model.", "train.")
        for key in self.search.space:
            if not key.startswith(allowed):
                hint = "" if len(allowed) > 2 else "; with search.mode=full also those under model. and train."
                prefixes = f"{', '.join(allowed[:-1])} and {allowed[-1]}"
                problems.append(f"search.space.{key}: only keys under {prefixes} can be searched{hint}")
        if problems:
            raise ValueError("\n".join(problems))
        return self

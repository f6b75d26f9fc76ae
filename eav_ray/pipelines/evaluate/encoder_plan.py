"""Plan a comparison of encoders: every encoder, seed and fold, checked before anything is trained."""

from collections.abc import Sequence
from dataclasses import dataclass

from eav_ray.config import Experiment, digest, order_modalities
from eav_ray.config.paths import resolve_experiment_paths
from eav_ray.config.published import adopt_published_settings
from eav_ray.data.shards.dataset import Dataset
from eav_ray.errors import ConfigError, describe_error
from eav_ray.evaluation.baselines.classifiers import KINDS, require_kinds
from eav_ray.evaluation.baselines.folds import check_access
from eav_ray.evaluation.baselines.inputs import Source, list_baselines
from eav_ray.evaluation.baselines.regressors import NUMBER_KINDS
from eav_ray.evaluation.encoder_variants import EncoderVariant, choose_references, read_encoder_variants
from eav_ray.pipelines.evaluate.model_costs import count_model_costs
from eav_ray.pipelines.train.cross_validation import PlannedFold, plan_cv_folds
from eav_ray.training.run_spec import Run

FORMAT = 1  # raise when what is kept of a comparison changes
FOLDER = "comparisons"  # in the results store
RESULTS_FILE = "encoders.json"
NO_BASELINES = "none"


@dataclass(frozen=True)
class EncoderProtocol:
    """One encoder under the experiment's protocol, with one seed."""

    variant: EncoderVariant
    experiment: Experiment
    folds: list[PlannedFold]

    @property
    def seed(self) -> int:
        return self.experiment.seed

    @property
    def runs(self) -> list[Run]:
        return [run for fold in self.folds for run in fold.runs]


@dataclass(frozen=True)
class EncoderPlan:
    """What a comparison trains and tests.

    Attributes:
        references: Modality -> name of the encoder that the others are compared with.
        baselines: Modality -> its baselines.
    """

    protocols: list[EncoderProtocol]
    references: dict[str, str]
    baselines: dict[str, list[Source]]

    @property
    def modalities(self) -> list[str]:
        """The modalities of the encoders, in the order of tables."""
        return order_modalities(self.references)

    @property
    def seeds(self) -> list[int]:
        return sorted({p.seed for p in self.protocols})

    @property
    def runs(self) -> list[Run]:
        """All trainings, each once."""
        return list({run.key: run for p in self.protocols for run in p.runs}.values())

    def list_protocols(self, modality: str) -> list[EncoderProtocol]:
        return [p for p in self.protocols if p.variant.modality == modality]

    def make_key(self, experiment: Experiment, data: Dataset) -> str:
        """Equal only for equal encoders tested on equal recordings, beside equal baselines."""
        identities = [
            [p.variant.name, p.variant.modality, p.seed, [[f.runs[-1].key, sorted(f.split.test)] for f in p.folds]]
            for p in self.protocols
        ]
        access = [experiment.split.access, experiment.split.access_recordings]
        baselines = [source.name for sources in self.baselines.values() for source in sources]
        parts = [data.digest, identities, self.references, baselines, access]
        return f"{experiment.name}-{digest(FORMAT, *parts)}"


def plan_comparison(
    e: Experiment, encoders: str, n_seeds: int, baselines: Sequence[str], references: Sequence[str], data: Dataset
) -> EncoderPlan:
    """Plan every training, and make every network once for such windows, without computing anything.

    Args:
        encoders, baselines, references: As `compare_encoders` takes them.
    Raises:
        ConfigError: An encoder that cannot be made, a line each; or a fold, a baseline or seeds that cannot.
    """
    variants = read_encoder_variants(encoders, e)
    chosen_references = choose_references(variants, references)
    if n_seeds < 1:
        raise ConfigError(f"--seeds is {n_seeds}; give a number of seeds, 1 or more")
    if n_seeds > 1 and e.data.labels != "true":
        raise ConfigError(
            f"--seeds is {n_seeds}, but each seed permutes labels in another way (data.labels=permuted); "
            "compare one seed"
        )
    modalities = order_modalities(chosen_references)
    chosen_baselines = choose_baselines(e, modalities, baselines)
    titles = {source.title for sources in chosen_baselines.values() for source in sources}
    problems: list[str] = []
    experiments: list[tuple[EncoderVariant, Experiment]] = []
    for variant in variants:
        if variant.name in titles:
            problems.append(f'an encoder has the name of a baseline, "{variant.name}"; rename it')
        try:
            found = [_prepare_variant(variant, e, e.seed + k) for k in range(n_seeds)]
            _check_network(variant, found[0], data)
            experiments += [(variant, one) for one in found]
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    protocols = [EncoderProtocol(variant, one, plan_cv_folds(one, data)) for variant, one in experiments]
    return EncoderPlan(protocols, chosen_references, chosen_baselines)


def choose_baselines(e: Experiment, modalities: Sequence[str], kinds: Sequence[str]) -> dict[str, list[Source]]:
    """Choose the baselines of each modality that has some.

    Args:
        kinds: Names of kinds; all by default, and `none` for none.
    Raises:
        ConfigError: A kind is unknown, no modality has it, or a package is missing.
    """
    if list(kinds) == [NO_BASELINES]:
        return {}
    check_access(e.split)
    try:
        sources = list_baselines(modalities, kinds, numbers=e.data.predicts_numbers)
        require_kinds([source.kind for source in sources], kinds=NUMBER_KINDS if e.data.predicts_numbers else KINDS)
    except ConfigError as error:
        raise ConfigError(str(error).replace("--kinds", "--baselines")) from None  # as this command calls them
    found: dict[str, list[Source]] = {}
    for source in sources:
        found.setdefault(source.modality, []).append(source)
    return found


def _prepare_variant(variant: EncoderVariant, e: Experiment, seed: int) -> Experiment:
    made = variant.apply_to(e, seed)
    try:
        return adopt_published_settings(resolve_experiment_paths(made))
    except ConfigError as error:
        raise ConfigError(variant.describe_problems(error)) from None


def _check_network(variant: EncoderVariant, experiment: Experiment, data: Dataset) -> None:
    """Make the network, and count what it does with a window.

    Raises:
        ConfigError: It cannot be made, or cannot read such windows.
    """
    try:
        count_model_costs(experiment, data)
    except (ValueError, RuntimeError) as error:  # of libraries too, which check their arguments each in their own way
        text = str(error) if isinstance(error, ConfigError) else describe_error(error)
        raise ConfigError(variant.describe_problems(ValueError(text))) from None

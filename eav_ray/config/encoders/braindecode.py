"""Configure any EEG network of braindecode."""

from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT, Preprocessing, define
from eav_ray.config.encoders.base import WEIGHTS_HELP, EncoderConfig
from eav_ray.config.modalities import ModalityName
from eav_ray.errors import ConfigError

# What data, and not a setting, decides.
DATA_ARGUMENTS = ("n_outputs", "n_chans", "n_times", "input_window_seconds", "sfreq", "chs_info")
# What braindecode notes beside them, and what changes the form of the output and not the network.
OTHER_ARGUMENTS = ("braindecode_version", "return_features", "return_feature", "return_feats", "return_encoder_output")
MODULE_PREFIXES = ("torch.nn.modules.", "torch.nn.")
# Networks whose code or weights are under terms that forbid commercial use, as braindecode states them.
NON_COMMERCIAL = {
    "BrainModule": "cc-by-nc-4.0",
    "EEGMiner": "cc-by-nc-4.0",
    "MetaNeuromotorHand": "cc-by-nc-4.0",
    "EMG2QwertyNet": "cc-by-nc-sa-4.0",
    "VEMG2Pose": "cc-by-nc-sa-4.0",
}


class PublishedInput(NamedTuple):
    """What the published weights of a network were trained on.

    Attributes:
        hz: Sampling rate, where their config.json does not say it.
        scale: As the key of the same name.
        unit_uv: Microvolts in one unit; 0 where nobody says, so that the experiment must.
        electrodes: `named`: the network looks them up by name, and any that it knows will do. `ordered`: those of the
            weights, in their order. `any`: the same, but others, in another number, can be given instead.
    """

    hz: int
    scale: str
    unit_uv: float
    electrodes: Literal["named", "ordered", "any"] = "ordered"


PUBLISHED_INPUTS = {
    "BIOT": PublishedInput(200, "quantile", 1.0),  # Yang et al. 2023, their normalisation of each window
    "CBraMod": PublishedInput(200, "microvolts", 100.0, "any"),  # Wang et al. 2025; it convolves along electrodes
    "EEGDINO": PublishedInput(200, "microvolts", 100.0),  # braindecode's documentation
    "EEGPT": PublishedInput(256, "microvolts", 0.0, "named"),
    "Labram": PublishedInput(200, "microvolts", 100.0, "named"),  # Jiang et al. 2024: 0.1 mV
    "SignalJEPA": PublishedInput(128, "microvolts", 1.0, "named"),  # braindecode's documentation
}


@dataclass(frozen=True, config=STRICT)
class BraindecodeConfig(EncoderConfig):
    """Any network of braindecode that gives a class or numbers for a window of EEG.

    With `weights`, rate, scale, electrodes and settings are those of the folder's config.json.
    """

    modality: ClassVar[ModalityName] = "eeg"
    normalises_subjects: ClassVar[bool] = True
    scales: ClassVar[bool] = False
    network_key: ClassVar[str] = "name"
    kind: Literal["braindecode"] = "braindecode"
    name: str = define("EEGNet", "of the class in braindecode.models")
    weights: str = define("", f"{WEIGHTS_HELP}, as braindecode saves them")
    settings: dict[str, Any] = define({}, "other arguments of the class, by its own names, as {F1: 16}")
    width: int = define(0, "of the tokens; 0: what the network makes. Another than that is refused", ge=0)
    hz: int = define(0, "rate that windows are resampled to for the network, Hz; 0: the stored one", ge=0)
    scale: Literal["", "standardised", "microvolts", "quantile"] = define(
        "",
        "what the network reads: channels standardised by the training rows; microvolts divided by unit_uv; or each "
        "channel of a window divided by the 95 % quantile of its absolute values. Empty: what published weights are "
        "known to read; without weights, standardised",
    )
    unit_uv: float = define(1.0, "microvolts in one unit of the network's input, with scale=microvolts", gt=0)
    channels: tuple[str, ...] = define(
        (),
        "electrodes that the network reads, in its order and in any spelling; Fp1-F7 is a difference of two. Empty: "
        "all that are stored",
    )

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        if wrong := sorted(set(self.settings) & {*DATA_ARGUMENTS, *OTHER_ARGUMENTS}):
            raise ValueError(f"settings has {', '.join(wrong)}, which windows and classes decide; leave it out")
        if self.weights:  # they decide the scale
            return self
        if self.scale != "microvolts" and self.unit_uv != 1.0:
            raise ValueError(f"unit_uv is {self.unit_uv}, which has no effect without scale=microvolts; leave it out")
        if self.standardises_channels and (differences := [name for name in self.channels if "-" in name]):
            raise ValueError(
                f"channels has {differences[0]}, a difference, which standardised channels do not have; set scale to "
                "microvolts or quantile"
            )
        return self

    @property
    def standardises_channels(self) -> bool:
        """Whether the network reads channels that are standardised by the training rows."""
        return self.scale in ("", "standardised")

    @property
    def reads_training_rows(self) -> bool:
        return self.standardises_channels

    def find_problems(self, preprocessing: Preprocessing) -> list[str]:
        stored_hz, problems = preprocessing.eeg.hz, []
        if not self.standardises_channels and self.subject_normalisation != "none":
            problems.append(
                f"model.eeg.scale is {self.scale}, which subject_normalisation would undo; leave one of them out"
            )
        if self.hz > stored_hz:
            problems.append(
                f"{self.name} reads {self.hz} Hz (model.eeg.hz), but windows are stored at {stored_hz}; set "
                f"preprocessing.eeg.hz={self.hz} or more"
            )
        if self.scale == "microvolts" and preprocessing.eeg.align != "none":
            problems.append(
                f"preprocessing.eeg.align is {preprocessing.eeg.align}, which leaves no microvolts, but "
                "model.eeg.scale is microvolts; set preprocessing.eeg.align=none"
            )
        return problems

    @property
    def non_commercial_licence(self) -> str:
        return NON_COMMERCIAL.get(self.name, "")

    def adopt_settings(self, published: dict[str, Any], where: str) -> dict[str, Any]:
        known = PUBLISHED_INPUTS.get(self.name)
        found: dict[str, Any] = {}
        if hz := published.get("sfreq") or (known.hz if known else 0):
            if not isinstance(hz, int | float) or hz != int(hz):
                raise ConfigError(f"{where}, whose config.json names the rate {hz!r} Hz; whole ones are taken")
            found["hz"] = int(hz)
        elif not self.hz:
            raise ConfigError(
                f"{where}, whose config.json does not name their rate (sfreq); set model.eeg.hz to what they "
                "were trained with"
            )
        if not known and not self.scale:
            raise ConfigError(
                f"{where}, and nothing says what they read; set model.eeg.scale to standardised, microvolts or "
                "quantile, as they were trained"
            )
        if known:
            found["scale"] = known.scale
            if known.unit_uv and known.scale == "microvolts":
                found["unit_uv"] = known.unit_uv
            elif known.scale == "microvolts" and self.unit_uv == 1.0:
                raise ConfigError(
                    f"{where}, and nothing says in what unit {self.name} was trained; set model.eeg.unit_uv to the "
                    "microvolts in one, such as 1000 for millivolts"
                )
        names, electrodes = _list_electrodes(published, where), known.electrodes if known else "ordered"
        if electrodes == "ordered" or (electrodes == "any" and not self.channels):
            if names:
                found["channels"] = names
            elif not self.channels:
                raise ConfigError(
                    f"{where}, whose config.json names no electrodes (chs_info); set model.eeg.channels to those of "
                    "the weights, in their order"
                )
        others = {*DATA_ARGUMENTS, *OTHER_ARGUMENTS}
        found["settings"] = {
            name: _simplify(name, value, where)
            for name, value in published.items()
            if name not in others and value is not None
        }
        return found


def _list_electrodes(published: dict[str, Any], where: str) -> tuple[str, ...]:
    """List the electrodes that braindecode saved beside the weights; empty where it saved none."""
    channels = published.get("chs_info") or []
    try:
        return tuple(str(channel["ch_name"]) for channel in channels)
    except (TypeError, KeyError):
        raise ConfigError(f"{where}, whose config.json has a chs_info without names of electrodes") from None


def _simplify(name: str, value: Any, where: str) -> Any:
    """Take the name of a layer of torch for its full path; nothing that a file names is imported."""
    if not isinstance(value, str) or "." not in value:
        return value
    prefix = next((p for p in MODULE_PREFIXES if value.startswith(p)), "")
    if not prefix:
        raise ConfigError(f"{where}, whose config.json sets {name} to {value}; layers of torch.nn alone are taken")
    return value.rsplit(".", 1)[1]

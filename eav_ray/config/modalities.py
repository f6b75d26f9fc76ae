"""The modalities: what all of the program has to know of each before any data is read.

How their windows are stored, cut and measured: `eav_ray.data.modalities`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

ModalityName = Literal["audio", "eeg", "video"]
MODALITIES: tuple[ModalityName, ...] = get_args(ModalityName)


@dataclass(frozen=True)
class ModalityInfo:
    """What is known of a modality by its name alone.

    Attributes:
        title: On pages and in figures.
        color: In figures; of Okabe and Ito's palette, which can be told apart without telling red from green.
        has_named_channels: Windows are (channels, samples). Channels are known by name, wherever a checkpoint meets
            recordings, and each is standardised by its own mean and SD over the training rows.
        is_worn: Its sensor has to be put on the subject's body: ablations show what it adds to the others.
    """

    name: str
    title: str
    color: str
    has_named_channels: bool = False
    is_worn: bool = False


_INFOS = {
    info.name: info
    for info in (
        # In the order of tables, and of the reference's concatenation of features.
        ModalityInfo("video", "Video", "#0072b2"),
        ModalityInfo("audio", "Audio", "#e69f00"),
        ModalityInfo("eeg", "EEG", "#009e73", has_named_channels=True, is_worn=True),
    )
}


def get_modality_info(name: str) -> ModalityInfo:
    return _INFOS[name]


def order_modalities(names: Iterable[str]) -> list[str]:
    """Bring names of modalities into the order of tables."""
    return sorted(names, key=list(_INFOS).index)


def select_channel_modalities(names: Iterable[str]) -> list[str]:
    """Select the modalities whose channels are known by name."""
    return [name for name in names if _INFOS[name].has_named_channels]


def select_worn_modalities(names: Iterable[str]) -> list[str]:
    """Select the modalities whose sensors are worn."""
    return [name for name in names if _INFOS[name].is_worn]

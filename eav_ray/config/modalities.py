"""The modalities: what all of the program has to know of each before any data is read.

Three are recorded. Others are features that somebody else has computed, under names that the experiment gives
(`preprocessing.features`). How their windows are stored, cut and measured: `eav_ray.data.modalities`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

ModalityName = str
MODALITIES: tuple[ModalityName, ...] = ("audio", "eeg", "video")  # that are recorded
FEATURE_COLORS = ("#cc79a7", "#56b4e9", "#d55e00", "#000000")  # of the same palette, by turns


@dataclass(frozen=True)
class ModalityInfo:
    """What is known of a modality by its name alone.

    Attributes:
        title: On pages and in figures.
        color: In figures; of Okabe and Ito's palette, which can be told apart without telling red from green.
        has_named_channels: Windows are (channels, samples). Channels are known by name, wherever a checkpoint meets
            recordings, and each is standardised by its own mean and SD over the training rows.
        example_file: A file as it is recorded in; of given features none.
        is_worn: Its sensor has to be put on the subject's body: ablations show what it adds to the others.
    """

    name: str
    title: str
    color: str
    has_named_channels: bool = False
    is_worn: bool = False
    example_file: str = ""


_INFOS = {
    info.name: info
    for info in (
        # In the order of tables, and of the reference's concatenation of features.
        ModalityInfo("video", "Video", "#0072b2", example_file="face.mp4"),
        ModalityInfo("audio", "Audio", "#e69f00", example_file="speech.wav"),
        ModalityInfo("eeg", "EEG", "#009e73", has_named_channels=True, is_worn=True, example_file="eeg.edf"),
    )
}


def get_modality_info(name: str) -> ModalityInfo:
    """Return what is known of a modality; those of given features have their name as title."""
    if name in _INFOS:
        return _INFOS[name]
    color = FEATURE_COLORS[sum(name.encode()) % len(FEATURE_COLORS)]
    return ModalityInfo(name, name.replace("_", " ").capitalize(), color)


def order_modalities(names: Iterable[str]) -> list[str]:
    """Bring names of modalities into the order of tables: recorded ones first, then given features by name."""
    order = list(_INFOS)
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def select_channel_modalities(names: Iterable[str]) -> list[str]:
    """Select the modalities whose channels are known by name."""
    return [name for name in names if get_modality_info(name).has_named_channels]


def select_worn_modalities(names: Iterable[str]) -> list[str]:
    """Select the modalities whose sensors are worn."""
    return [name for name in names if get_modality_info(name).is_worn]

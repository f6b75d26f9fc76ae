"""Look up where electrodes sit on the scalp (10-05 positions)."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from eav_ray.errors import DataError

if TYPE_CHECKING:
    import mne

BIOSEMI_PREFIX = "BioSemi "  # of its own names, A1 to H32, of which C3 is no C3 of the 10-20 system
MIN_MAP_CHANNELS = 4  # that a map of the head is drawn of

# Positions of the older 10-20 nomenclature, by what 10-05 calls them.
OLDER_NAMES = {"t3": "T7", "t4": "T8", "t5": "P7", "t6": "P8"}

# What recorders write around the name of a position: a prefix, dots, and what it is referred to.
CHANNEL_NAME_AFFIXES = re.compile(
    r"^(?:EEG[ _-]*|POL[ _-]+)|\.+$|[ ]*[-_/ ][ ]*"
    r"(?:ref\d*|c?le|re|ar|avg?|average|car|ear|org|gnd|ground|[am][12]|a1[+/]?a2|m1[+/]?m2|\((?:a1\+a2|m1\+m2)\)/2)$",
    re.IGNORECASE,
)
REFERENCES = ("A1", "A2", "M1", "M2")  # the ear lobes and mastoids, which the montage knows, too


def resolve_electrodes(channels: Sequence[str]) -> list[str]:
    """The 10-05 position that each channel's name means; "" where it means none, or one that is taken.

    Recorders write `EEG Fp1-REF`, `FP1` or `Fp1.` for `Fp1`; a bipolar `Fp1-F7` has no one position.
    """
    electrodes: list[str] = []
    for channel in channels:
        electrode = _find_electrode(channel)
        electrodes.append("" if electrode in electrodes else electrode)
    return electrodes


def canonicalize_channel_name(name: str) -> str:
    """Spell a channel as this program stores it: the 10-05 position that it means, else the name as it stands.

    `EEG FP1-REF`, `fp1` and `Fp1.` are `Fp1`; T3, T4, T5 and T6 are T7, T8, P7 and P8.
    """
    return _find_electrode(name) or name.strip()


def is_reference(name: str) -> bool:
    """Tell whether a name means an ear lobe or a mastoid, which are references and no EEG of the scalp."""
    return canonicalize_channel_name(name) in REFERENCES


def is_scalp_position(name: str) -> bool:
    """Tell whether a name, in any spelling, means a 10-05 position on the scalp."""
    return bool(_find_electrode(name)) and not is_reference(name)


def locate_channels(channels: Sequence[str]) -> tuple[list[int], "mne.Info"] | None:
    """Find the channels whose place on the head is known, for a map of it: their numbers, and MNE's info of them.

    Returns:
        None where these are too few for a map.
    """
    import mne

    sites = resolve_electrodes(channels)
    known_channels = [i for i, site in enumerate(sites) if site]
    if len(known_channels) < MIN_MAP_CHANNELS:
        return None
    info = mne.create_info([sites[i] for i in known_channels], 100.0, "eeg")
    info.set_montage(load_standard_montage())
    return known_channels, info


def match_channels(available: Sequence[str], wanted: Sequence[str], where: str) -> list[int]:
    """Find wanted channels among those of a recording, by position and not by order or spelling.

    Args:
        available: Names of the recording's channels.
        wanted: Names of the channels that are wanted, in order. Extra ones of the recording are left out.
        where: What the recording is called in an error.
    Returns:
        The index in `available` of each wanted channel.
    Raises:
        DataError: A wanted channel is missing, or two channels of the recording mean one position.
    """
    names = [canonicalize_channel_name(name) for name in available]
    folded = [name.casefold() for name in names]
    own = BIOSEMI_PREFIX.casefold()

    def fold(name: str) -> str:
        key = canonicalize_channel_name(name).casefold()
        return own + key if key not in folded and own + key in folded else key

    if missing := [canonicalize_channel_name(name) for name in wanted if fold(name) not in folded]:
        raise DataError(
            f"{where} has no EEG channel {', '.join(missing)}; wanted are "
            f"{', '.join(map(canonicalize_channel_name, wanted))}, and it has {', '.join(names)}"
        )
    order = [folded.index(fold(name)) for name in wanted]
    if twice := [names[i] for i in order if folded.count(folded[i]) > 1]:
        raise DataError(f"{where} has more than one EEG channel {', '.join(twice)}; keep one of each")
    return order


def describe_left_out(available: Sequence[str], wanted: Sequence[str]) -> str:
    """Name the channels of a recording that are not wanted; empty where there is none."""
    canonical = {canonicalize_channel_name(name) for name in wanted}
    return ", ".join(name.strip() for name in available if canonicalize_channel_name(name) not in canonical)


def _find_electrode(channel: str) -> str:
    name = CHANNEL_NAME_AFFIXES.sub("", channel.strip()).lower()
    return OLDER_NAMES.get(name) or _list_known_positions().get(name, "")


@lru_cache(maxsize=1)
def _list_known_positions() -> dict[str, str]:
    return {name.lower(): name for name in load_standard_montage().ch_names}


@lru_cache(maxsize=1)
def load_standard_montage() -> "mne.channels.DigMontage":
    """The 10-05 positions, which MNE renames in 1.14."""
    import mne

    name = "colin27_1005" if "colin27_1005" in mne.channels.get_builtin_montages() else "standard_1005"
    return mne.channels.make_standard_montage(name)

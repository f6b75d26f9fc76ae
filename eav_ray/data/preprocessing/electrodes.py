"""Look up where electrodes sit on the scalp (10-05 positions)."""

import re
from collections.abc import Sequence
from functools import lru_cache

import mne

# What recorders write around the name of a position: a prefix, dots, and what it is referred to.
CHANNEL_NAME_AFFIXES = re.compile(r"^EEG[ _-]?|\.+$|-(?:ref|le|re|ar|avg?|[am][12]|a1a2|m1m2)$", re.IGNORECASE)


def resolve_electrodes(channels: Sequence[str]) -> list[str]:
    """The 10-05 position that each channel's name means; "" where it means none, or one that is taken.

    Recorders write `EEG Fp1-REF`, `FP1` or `Fp1.` for `Fp1`; a bipolar `Fp1-F7` has no one position.
    """
    known = {name.lower(): name for name in load_standard_montage().ch_names}
    electrodes: list[str] = []
    for channel in channels:
        electrode = known.get(CHANNEL_NAME_AFFIXES.sub("", channel.strip()).lower(), "")
        electrodes.append("" if electrode in electrodes else electrode)
    return electrodes


@lru_cache(maxsize=1)
def load_standard_montage() -> mne.channels.DigMontage:
    """The 10-05 positions, which MNE renames in 1.14."""
    name = "colin27_1005" if "colin27_1005" in mne.channels.get_builtin_montages() else "standard_1005"
    return mne.channels.make_standard_montage(name)

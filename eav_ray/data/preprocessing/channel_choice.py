"""Choose the channels of a file that are EEG of the scalp, by what the file says of them, else by their names."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from eav_ray.data.recordings import Problem, Recording
from eav_ray.electrodes import (
    BIOSEMI_PREFIX,
    CHANNEL_NAME_AFFIXES,
    canonicalize_channel_name,
    is_reference,
    is_scalp_position,
)
from eav_ray.errors import DataError

# What laboratories and headsets record beside EEG, by parts that a name may have and by whole words of it: first what
# counts, marks or labels, then what senses something else.
MARKER_PARTS = re.compile(
    r"status|trig|marker|stim|counter|interpolat|annotation|event|timestamp|packet", re.IGNORECASE
)
MARKER_WORDS = re.compile(
    r"(?:sti|mrk|target|label|class|time\w*|clock|sync\w*|sample\w*|index|key\w*|button\w*|digital\w*|din|code|condition|"
    r"emotion|valence|arousal|rating)\d*",
    re.IGNORECASE,
)
SENSOR_PARTS = re.compile(
    r"eog|ecg|ekg|emg|gsr|ppg|bvp|resp|plet|gyro|quality|batter|gaze|pupil|pulse|heart|snor|flow|thora|abdo|spo2|sao2|"
    r"photo|sensor",
    re.IGNORECASE,
)
SENSOR_WORDS = re.compile(
    r"(?:exg|ex|eda|erg|temp(?:erature)?|acc\w*|mag[xyz]|cq|aux\w*|bip\w*|misc\w*|hr|chest|leg|legs|chin|diode|audio|sound|"
    r"mic|eyes?|ref\w*|gnd|ground|dc|photic|pr|osat|loc|roc|veo|heo|scr|skt|vns|light|nasal|oral|body|position)"
    r"(?:\d+|[xyzlr])?",
    re.IGNORECASE,
)
CHANNEL_PREFIX = re.compile(r"^(?:EEG|POL)[ _:-]+", re.IGNORECASE)
BIOSEMI_NAME = re.compile(r"[A-H](?:[1-9]|[12]\d|3[0-2])", re.IGNORECASE)  # of its own montages of 32 to 256
NUMBERED_NAME = re.compile(r"(?:EEG|E|Ch|Chan|Channel|Elec|Electrode)?[ _-]?0*\d{1,3}", re.IGNORECASE)
MIN_BIOSEMI_CHANNELS = 8


@dataclass(frozen=True)
class ChannelChoice:
    """Names of channels as a file writes them.

    Attributes:
        taken: Those that are EEG, in the file's order.
        left_out: The others.
        spelt: How each that is taken is called from here on.
        is_selected: Whether the experiment named those that are taken.
        placed: Those that are taken, whose names mean no place on the head, though the file states one.
    """

    taken: tuple[str, ...]
    left_out: tuple[str, ...]
    spelt: tuple[str, ...]
    is_selected: bool = False
    placed: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """Why the others are left out."""
        return "not among preprocessing.eeg.channels" if self.is_selected else "no EEG of the scalp"

    @property
    def remarks(self) -> tuple[str, ...]:
        left_out = (f"left out, as {self.reason}: {', '.join(self.left_out)}",) if self.left_out else ()
        return (*left_out, *self.describe_places())

    def describe_places(self) -> tuple[str, ...]:
        """Say that stated places are not used, where names mean none."""
        if not self.placed:
            return ()
        named = ", ".join(self.placed[:3]) + (", ..." if len(self.placed) > 3 else "")
        return (
            f"places of electrodes are stated and not used, and {len(self.placed)} names ({named}) mean none: such a "
            "channel is zero where it is bad, and is on no map",
        )


def choose_channels(
    names: Sequence[str], types: Sequence[str], wanted: Sequence[str], where: str, placed: Collection[str] = ()
) -> ChannelChoice:
    """Choose the channels that are EEG of the scalp.

    Those with the name of a scalp position, if there are any; else, where a laboratory numbers its electrodes or names
    them in its own way, all that are of type EEG and whose name does not say that they are something else.

    Args:
        types: Of the channels, in MNE's words.
        wanted: Names in any spelling: these instead, in this order (`preprocessing.eeg.channels`); none: as above.
        where: What the file is called in an error.
        placed: Names of channels of which a place on the head is stated.
    Raises:
        DataError: There is no EEG, or a wanted one is not there, is there twice, or is no EEG.
    """
    is_eeg = [kind == "eeg" for kind in types]
    spelt = _spell(names, is_eeg)
    if wanted:
        return _note_places(_select(names, spelt, is_eeg, wanted, where), placed)
    candidates = [i for i in range(len(names)) if is_eeg[i]]
    scalp = [i for i in candidates if is_scalp_position(spelt[i])]
    numbered = [i for i in candidates if spelt[i].startswith(BIOSEMI_PREFIX) or _is_numbered(spelt[i])]
    if len(numbered) > len(scalp):
        taken = sorted({*scalp, *numbered})
    else:
        taken = scalp or [i for i in candidates if not is_other_signal(names[i])]
    if not taken:
        raise DataError(f"{where} has no EEG channel; it has {', '.join(names) or 'none'}")
    left_out = [name for i, name in enumerate(names) if i not in taken]
    choice = ChannelChoice(tuple(names[i] for i in taken), tuple(left_out), tuple(spelt[i] for i in taken))
    return _note_places(choice, placed)


def _note_places(choice: ChannelChoice, placed: Collection[str]) -> ChannelChoice:
    found = [n for n, s in zip(choice.taken, choice.spelt, strict=True) if n in placed and not is_scalp_position(s)]
    return replace(choice, placed=tuple(found))


def collect_channel_remarks(
    recordings: Sequence[Recording], describe: Callable[[str], Iterable[str]], counted: str
) -> tuple[tuple[str, ...], tuple[Problem, ...]]:
    """Collect what EEG files say of themselves, and which of them cannot be used.

    Args:
        recordings: Whose files are looked at, each with EEG.
        describe: Lists what a file says, or raises DataError.
        counted: What a remark is counted in.
    Returns:
        A line for each remark, with how many say it; and a problem for each file that cannot be used.
    """
    counts: Counter[str] = Counter()
    problems: list[Problem] = []
    for recording in recordings:
        path = recording.get_eeg_file()
        try:
            counts.update(describe(path))
        except DataError as error:
            problems.append(Problem(recording.subject, recording.recording, path, str(error)))
    remarks = [f"{remark} ({n} of {len(recordings)} {counted})" for remark, n in counts.most_common()]
    return tuple(remarks), tuple(problems)


def is_other_signal(name: str) -> bool:
    """Tell whether a name says that a channel is no EEG of the scalp: a reference, a marker, another sensor."""
    word, parts = _split_name(name)
    return (
        is_marker(name)
        or SENSOR_PARTS.search(word) is not None
        or any(SENSOR_WORDS.fullmatch(part) for part in parts)
        or all(is_reference(part) for part in parts)
    )


def is_marker(name: str) -> bool:
    """Tell whether a name says that a channel counts or marks something, which may give the label away."""
    word, parts = _split_name(name)
    return MARKER_PARTS.search(word) is not None or any(MARKER_WORDS.fullmatch(part) for part in parts)


def _split_name(name: str) -> tuple[str, list[str]]:
    """A name without what it is referred to, which says nothing of what it is; and its words."""
    word = CHANNEL_NAME_AFFIXES.sub("", CHANNEL_PREFIX.sub("", name.strip()))
    return word, [part for part in re.split(r"[\W_]+", word) if part]


def _is_numbered(name: str) -> bool:
    return NUMBERED_NAME.fullmatch(CHANNEL_NAME_AFFIXES.sub("", name.strip())) is not None


def _spell(names: Sequence[str], is_eeg: Sequence[bool]) -> list[str]:
    """Spell channels by their position.

    BioSemi's own names run from A1 to H32, and C3 among them is no C3 of the 10-20 system: they are marked as such.
    Those of other nets run from E1 on.
    """
    words = [CHANNEL_PREFIX.sub("", name.strip()) for name in names]
    own = [i for i, word in enumerate(words) if is_eeg[i] and BIOSEMI_NAME.fullmatch(word)]
    certain = [i for i in own if not is_scalp_position(canonicalize_channel_name(words[i]))]
    others = [
        i
        for i, word in enumerate(words)
        if i not in own and is_eeg[i] and is_scalp_position(canonicalize_channel_name(word))
    ]
    spelt = [canonicalize_channel_name(name) for name in names]
    has_first = any(words[i].upper().startswith("A") for i in own)
    if has_first and len(certain) >= MIN_BIOSEMI_CHANNELS and len(certain) > len(others):
        for i in own:
            spelt[i] = BIOSEMI_PREFIX + words[i].upper()
    return spelt


def _select(
    names: Sequence[str], spelt: Sequence[str], is_eeg: Sequence[bool], wanted: Sequence[str], where: str
) -> ChannelChoice:
    taken: list[int] = []
    # Whoever asks for an ear lobe or for what a recorder calls EXG may have it.
    possible = [i for i in range(len(names)) if is_eeg[i] and not is_marker(names[i])]
    for name in wanted:
        position = canonicalize_channel_name(name)
        found = [i for i in possible if names[i].strip() == name.strip()]
        found = found or [i for i in possible if position in (spelt[i], spelt[i].removeprefix(BIOSEMI_PREFIX))]
        found = found or [i for i in possible if spelt[i].removeprefix(BIOSEMI_PREFIX).lower() == position.lower()]
        there = ", ".join(names[i].strip() for i in possible) or "none"
        if not found:
            raise DataError(f"{where} has no EEG channel {name} (preprocessing.eeg.channels); it has {there}")
        if len(found) > 1:
            raise DataError(
                f"{where} has more than one EEG channel {name} (preprocessing.eeg.channels); name it as the file does: "
                f"{there}"
            )
        if found[0] in taken:
            raise DataError(f"preprocessing.eeg.channels names {names[found[0]].strip()} of {where} twice; keep one")
        taken += found
    left_out = [name for i, name in enumerate(names) if i not in taken]
    return ChannelChoice(tuple(names[i] for i in taken), tuple(left_out), tuple(spelt[i] for i in taken), True)

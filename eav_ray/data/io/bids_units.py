"""Bring EEG of a BIDS data set to microvolts: by its file, else by the table of channels beside it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from eav_ray.data.io.bids_tables import Channel
from eav_ray.data.io.eeg_units import EEG_UNIT_KEY, MICROVOLTS, parse_unit
from eav_ray.data.recordings import RawEEG


def apply_table_units(path: Path, raw: RawEEG, channels: Sequence[Channel | None]) -> RawEEG:
    """Bring to microvolts, by the table, what states no unit, such as a file of EEGLAB; else say what differs."""
    texts = [channel.unit if channel else "" for channel in channels]
    units = [parse_unit(text) if text else "" for text in texts]
    remarks: list[str] = []
    if unknown := sorted({text for text, unit in zip(texts, units, strict=True) if unit == "auto"}):
        remarks.append(f"units of channels.tsv that are not known: {', '.join(unknown)}; those of the file are used")
    known = Counter(unit for unit in units if unit not in ("", "auto"))
    is_by_convention = path.suffix.lower() == ".set"
    if not known or not (is_by_convention or raw.unit == "auto"):
        if raw.stated_unit and set(known) - {raw.stated_unit}:
            remarks.append(f"channels.tsv says {', '.join(sorted(known))}, the file {raw.stated_unit}, which is used")
        return replace(raw, remarks=(*raw.remarks, *remarks))
    other = "microvolt" if is_by_convention else known.most_common(1)[0][0]
    found = [unit if unit in MICROVOLTS else other for unit in units]
    if set(found) != {"microvolt"} or not is_by_convention:
        said = sorted({text for text, unit in zip(texts, units, strict=True) if unit in MICROVOLTS})
        remarks.append(f"in {', '.join(said)}, as channels.tsv says, and brought to microvolts")
    return replace(
        raw,
        values_CT=raw.values_CT * np.array([MICROVOLTS[unit] for unit in found])[:, None],
        unit="microvolt",
        stated_unit=found[0] if len(set(found)) == 1 else "",
        remarks=(*(remark for remark in raw.remarks if EEG_UNIT_KEY not in remark), *remarks),
    )

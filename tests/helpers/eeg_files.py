"""EEG files as laboratories write them, of known amplitudes at known times."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mne
import numpy as np
from scipy.io import savemat

NAMES = ("Fp1", "Fp2", "C3", "C4", "P3", "P4", "O1", "O2")


def make_eeg(seconds: float, hz: float = 100, channels: int = 8, seed: int = 0) -> np.ndarray:
    """Noise of some 30 microvolts, alike in all channels: (channels, samples)."""
    rng, n_times = np.random.default_rng(seed), round(seconds * hz)
    return rng.normal(0, 20, n_times) + rng.normal(0, 15, (channels, n_times))


def encode_edf(
    values_CT: np.ndarray,
    names: Sequence[str],
    *,
    hz: int = 100,
    units: str | Sequence[str] = "uV",
    onsets_s: Sequence[float] = (),
    marks: Sequence[tuple[float, float, str]] = (),
    is_bdf: bool = False,
    reserved: str | None = None,
    n_records: int | None = None,
    record_s: float = 1.0,
    physical: tuple[float, float] = (-3276.7, 3276.7),
    digital: tuple[int, int] | None = None,
) -> bytes:
    """An EDF+ or BDF+ file with one record a second.

    Args:
        values_CT: In the unit of its header, (channels, whole records).
        onsets_s: When each record begins; none: no annotations, one after the other.
        marks: (onset, duration, text) in seconds, in the first record.
        reserved: What kind of file the header says it is.
        n_records: What the header says.
    """
    kind, most = ("BDF", 2**23 - 1) if is_bdf else ("EDF", 32767)
    first, last = digital or (-most, most)
    low, high = physical
    n = round(hz * record_s)
    count = values_CT.shape[1] // n
    digits_CT = np.round((values_CT - low) / (high - low) * (last - first) + first).astype(np.int64)
    digits_CT = np.clip(digits_CT, -most - 1, most)
    unit_list = [units] * len(names) if isinstance(units, str) else list(units)
    with_marks = bool(len(onsets_s) or marks)
    onsets = list(onsets_s) or [k * record_s for k in range(count)]
    labels = [*names, *([f"{kind} Annotations"] if with_marks else [])]
    extra = len(labels) - len(names)
    mark_bytes = 120 + sum(len(m[2]) + 30 for m in marks)
    mark_bytes += -mark_bytes % 6
    ns = len(labels)
    reserved = reserved if reserved is not None else (f"{kind}+D" if len(onsets_s) else f"{kind}+C")

    def field(value: object, width: int) -> bytes:
        return str(value).ljust(width)[:width].encode("latin1")

    def column(values: Sequence[object], width: int) -> bytes:
        return b"".join(field(v, width) for v in values)

    head = (
        (b"\xffBIOSEMI" if is_bdf else field("0", 8)) + field("X X X X", 80) + field("Startdate 01-JAN-2024 X X X", 80)
    )
    head += field("01.01.24", 8) + field("10.00.00", 8) + field(256 * (ns + 1), 8) + field(reserved, 44)
    head += field(count if n_records is None else n_records, 8) + field(f"{record_s:g}", 8) + field(ns, 4)
    head += column(labels, 16) + column([""] * ns, 80) + column([*unit_list, *[""] * extra], 8)
    head += column([f"{low:g}"] * len(names) + [-1] * extra, 8) + column([f"{high:g}"] * len(names) + [1] * extra, 8)
    head += column([first] * len(names) + [-most - 1] * extra, 8) + column([last] * len(names) + [most] * extra, 8)
    width = 3 if is_bdf else 2
    head += column([""] * ns, 80) + column([n] * len(names) + [mark_bytes // width] * extra, 8) + column([""] * ns, 32)
    body = b""
    for k in range(count):
        part = np.ascontiguousarray(digits_CT[:, k * n : (k + 1) * n])
        body += (
            part.astype("<i4").reshape(-1, 1).view(np.uint8)[:, :3].tobytes()
            if is_bdf
            else part.astype("<i2").tobytes()
        )
        if with_marks:
            text = f"+{round(float(onsets[k]), 4)}\x14\x14\0"
            text += "".join(f"+{a:g}\x15{b:g}\x14{c}\x14\0" for a, b, c in (marks if k == 0 else ()))
            body += text.encode().ljust(mark_bytes, b"\0")
    return head + body


def write_edf(path: Path, values_CT: np.ndarray, names: Sequence[str] = NAMES, **options: Any) -> None:
    """Write an EDF or BDF file, by its suffix (`encode_edf`)."""
    path.write_bytes(encode_edf(values_CT, names, is_bdf=path.suffix == ".bdf", **options))


def write_brainvision(
    path: Path,
    values_CT: np.ndarray,
    names: Sequence[str] = NAMES,
    *,
    hz: float = 100,
    unit: str | None = "\u00b5V",
    encoding: str = "utf-8",
    markers: Sequence[str] = ("New Segment,,1,1,0,20240101100000000000",),
    resolution: float = 0.1,
    binary: str = "IEEE_FLOAT_32",
    is_vectorized: bool = False,
) -> None:
    """Write the three files of a recording.

    Args:
        path: Of the header.
        values_CT: In the unit of the header.
        unit: Without it the header has no such field.
        binary: What the samples are, in the words of the header.
        is_vectorized: Whether the samples of a channel follow each other.
        markers: Lines of the marker file, behind `MkN=`.
    """
    last = "" if unit is None else f",{unit}"
    lines = ["Brain Vision Data Exchange Header File Version 1.0", "", "[Common Infos]"]
    lines += [f"Codepage={'UTF-8' if encoding == 'utf-8' else 'ANSI'}", f"DataFile={path.stem}.eeg"]
    lines += [f"MarkerFile={path.stem}.vmrk", "DataFormat=BINARY"]
    lines += [f"DataOrientation={'VECTORIZED' if is_vectorized else 'MULTIPLEXED'}"]
    lines += [f"NumberOfChannels={len(names)}", f"SamplingInterval={1e6 / hz:g}", "", "[Binary Infos]"]
    lines += [f"BinaryFormat={binary}", "", "[Channel Infos]"]
    lines += [f"Ch{i + 1}={name},,{resolution:g}{last}" for i, name in enumerate(names)]
    path.write_bytes("\r\n".join([*lines, ""]).encode(encoding))
    digits_CT = values_CT / resolution if binary.startswith("IEEE") else np.round(values_CT / resolution)
    kind = {"IEEE_FLOAT_32": "<f4", "INT_16": "<i2", "INT_32": "<i4"}[binary]
    (digits_CT if is_vectorized else digits_CT.T).astype(kind).tofile(path.with_suffix(".eeg"))
    head = [
        "Brain Vision Data Exchange Marker File, Version 1.0",
        "",
        "[Common Infos]",
        f"DataFile={path.stem}.eeg",
        "",
    ]
    head += ["[Marker Infos]", *(f"Mk{i + 1}={marker}" for i, marker in enumerate(markers)), ""]
    path.with_suffix(".vmrk").write_text("\r\n".join(head))


def write_set(
    path: Path,
    values_CT: np.ndarray,
    names: Sequence[str] = NAMES,
    *,
    hz: float = 100,
    events: Sequence[tuple[str, float, float]] = (),
    trials: int = 1,
    types: Sequence[str] = (),
    bads: Sequence[str] = (),
    fields: Mapping[str, Any] | None = None,
) -> None:
    """Write a file of EEGLAB, microvolts.

    Args:
        bads: Channels that `chanlocs.badchan` names; where there are none, there is no such field.
        fields: Further ones.
        events: Type, latency in samples from 1, duration in samples.
    """
    event = np.array(list(events), dtype=[("type", object), ("latency", object), ("duration", object)])
    columns: dict[str, Sequence[Any]] = {"labels": names} | ({"type": types} if types else {})
    columns |= {"badchan": [float(name in bads) for name in names]} if bads else {}
    locations = np.array(list(zip(*columns.values(), strict=True)), dtype=[(column, object) for column in columns])
    n_times = values_CT.shape[1] // trials
    data = (
        values_CT.astype("f4")
        if trials == 1
        else values_CT.astype("f4").reshape(len(names), trials, n_times).swapaxes(1, 2)
    )
    tree = {"setname": "a", "nbchan": len(names), "trials": trials, "pnts": n_times, "srate": float(hz), "xmin": 0.0}
    tree |= {"xmax": (n_times - 1) / hz, "data": data, "chanlocs": locations, "event": event, "ref": "common"}
    tree |= {"icawinv": [], "icaweights": [], "icasphere": [], "epoch": [], "icaact": [], "icachansind": []}
    savemat(path, {"EEG": tree | dict(fields or {})})


def make_raw(
    values_CT: np.ndarray, names: Sequence[str] = NAMES, *, hz: float = 100, types: Any = "eeg"
) -> mne.io.RawArray:
    """An object of MNE, of microvolts."""
    return mne.io.RawArray(values_CT * 1e-6, mne.create_info(list(names), hz, types, verbose="ERROR"), verbose="ERROR")


def write_fif(
    path: Path,
    values_CT: np.ndarray,
    names: Sequence[str] = NAMES,
    *,
    hz: float = 100,
    annotations: Sequence[tuple[float, float, str]] = (),
    bads: Sequence[str] = (),
    types: Any = "eeg",
    first_sample: int = 0,
    is_dated: bool = False,
    numbers: Any = "double",
) -> None:
    """Write a FIF file, microvolts.

    Args:
        numbers: What the samples are, in MNE's words.
        annotations: (onset, duration, description), seconds since the first sample.
    """
    info = mne.create_info(list(names), hz, types, verbose="ERROR")
    raw = mne.io.RawArray(values_CT * 1e-6, info, first_samp=first_sample, verbose="ERROR")
    if is_dated:
        raw.set_meas_date(1.7e9)
    raw.info["bads"] = list(bads)
    if annotations:
        onset, duration, text = zip(*annotations, strict=True)
        raw.set_annotations(mne.Annotations(onset, duration, text), verbose="ERROR")
    raw.save(path, fmt=numbers, overwrite=True, verbose="ERROR")


def write_table(folder: Path, *files: str, name: str = "m.csv") -> str:
    """Write a table of one person, whose recordings are called by their files."""
    rows = [f"p1,{file.partition('.')[0]},{'ab'[i % 2]},{file}" for i, file in enumerate(files)]
    (folder / name).write_text("\n".join(["subject,recording,label,eeg", *rows, ""]))
    return str(folder / name)

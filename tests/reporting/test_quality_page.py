"""The quality table counts what was measured, and the page shows it without another file."""

import re
from typing import Any

import numpy as np
import pytest

from eav_ray.data.datasets.eav import EAV_CHANNELS
from eav_ray.data.recordings import Problem
from eav_ray.reporting.quality_page import (
    EEGSpectrum,
    QualityReport,
    format_quality,
    render_quality_page,
    summarize_quality_per_subject,
)


def row(subject: str, recording: int, bad: dict[str, str] | None) -> dict[str, Any]:
    found: dict[str, Any] = {"subject": subject, "recording": f"{recording:03d}", "label": recording % 2, "windows": 4}
    found |= {"audio_db": -20.0 - recording, "audio_clipped": 0.0, "video_luma": 100.0, "video_repeated": 0.0}
    return found if bad is None else found | {"eeg_bad_channel_reasons": bad, "eeg_unit": "microvolt"}


QUALITY = QualityReport(
    ("calm", "<angry>"),
    [row("p1", 0, {"Cz": "flat"}), row("p1", 1, {"Cz": "flat", "Pz": "extreme"}), row("p2", 0, {}), row("p2", 1, None)],
    (Problem("p2", "001", "a.mat", "3 of 30 channels & more"),),
    EAV_CHANNELS,
    EEGSpectrum(np.arange(251.0), np.zeros((2, 251)), np.arange(51.0), np.zeros((2, 51))),
    {"p1": np.zeros((8, 8, 3), np.uint8)},
)


def test_means_are_over_the_recordings_that_have_the_modality() -> None:
    summary = summarize_quality_per_subject(QUALITY)
    assert summary["bad_channels"].tolist() == [1.5, 0.0]
    assert summary["windows"].tolist() == [8, 8] and summary["problems"].tolist() == [0, 1]
    assert summary["audio_db"].tolist() == [-20.5, -20.5]


def test_the_table_has_a_line_a_subject() -> None:
    head, *lines = format_quality(QUALITY).splitlines()
    assert [line.split()[0] for line in lines] == ["p1", "p2"]
    assert "bad channels" in head and lines[0].split()[3] == "1.50" and lines[0].split()[-1] == "0"


def test_the_page_needs_no_other_file_and_escapes_names() -> None:
    page = render_quality_page(QUALITY)
    assert not re.search(r"(src|href)=\"(?!data:)", page) and page.count("<script>") == page.count("<script") == 1
    assert "&lt;angry&gt;" in page and "<angry>" not in page and "channels &amp; more" in page
    assert page.count("<img") == 4  # head, spectrum, levels, frames
    assert "<td>Cz</td><td>flat</td><td>2</td>" in page  # of the 3 recordings with EEG


def test_each_picture_says_in_words_what_is_seen() -> None:
    captions = re.findall(r'<img alt="([^"]*)"', render_quality_page(QUALITY))
    assert len(captions) == 4 and all(captions)
    head, spectrum, levels, frames = captions
    assert "Cz 66.7 %, Pz 33.3 % the most" in head
    assert "2 recordings" in spectrum and "at 10 Hz 0.0 dB as recorded and 0.0 dB as stored" in spectrum
    assert "4 recordings" in levels and "median -20.5 dB" in levels and "from -21.0 to -20.0" in levels
    assert frames.endswith("of each person: p1.")


@pytest.mark.parametrize("channels", [("A", "B", "C", "D"), ()])
def test_channels_without_a_place_have_no_map(channels: tuple[str, ...]) -> None:
    quality = QualityReport(("a",), [row("p1", 0, {"A": "flat"})], (), channels)
    assert "no map" in render_quality_page(quality)


def test_audio_alone_has_neither_head_nor_faces() -> None:
    recording = {"subject": "p1", "recording": "1", "label": 0, "windows": 1, "audio_db": -20.0, "audio_clipped": 0.1}
    page = render_quality_page(QualityReport(("a",), [recording], ()))
    assert (
        page.count("<img") == 1
        and "bad channels" not in page
        and "10.00%" in format_quality(QualityReport(("a",), [recording], ()))
    )


def test_what_files_say_is_shown_once_with_how_many_say_it() -> None:
    said = {"remarks": ["eeg: volts"]}
    rows = [row("p1", 0, {}) | said, row("p1", 1, {}) | {"remarks": ["video: turned <by> 90"]}, row("p2", 0, {}) | said]
    report = QualityReport(("calm", "angry"), rows, ())
    last = format_quality(report).splitlines()[-2:]
    assert [line.split()[-2:] for line in last] == [["2", "p1/000"], ["1", "p1/001"]]
    page = render_quality_page(report)
    assert "eeg: volts" in page and "turned &lt;by&gt; 90" in page and page.count("p1/000") == 1
    assert "files say" not in render_quality_page(QUALITY)


def test_what_tables_of_the_data_set_say_is_of_all() -> None:
    report = QualityReport(("calm",), [row("p1", 0, {})], (), remarks=("a.csv is read as Windows-1252",))
    assert format_quality(report).splitlines()[-1].split()[-2:] == ["Windows-1252", "all"]
    assert "a.csv is read as Windows-1252" in render_quality_page(report)

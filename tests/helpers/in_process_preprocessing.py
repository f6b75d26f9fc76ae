"""The preprocessing job in this process, without Ray: its chunks are made one after the other."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eav_ray.data.preprocessing.windowing import WindowedRecording, cut_recording
from eav_ray.data.recordings import Recording
from eav_ray.distributed import cluster
from eav_ray.pipelines.preprocess import preprocess as pipeline
from eav_ray.pipelines.preprocess.chunks import Chunk
from eav_ray.pipelines.preprocess.eeg_stage import depends_on_subject, prepare_subject
from eav_ray.pipelines.preprocess.preprocess import ChunkMaker

MadeChunks = list[str]  # names


def run_in_process(monkeypatch: pytest.MonkeyPatch) -> MadeChunks:
    """Let `preprocess` make its chunks here; what it makes is appended to the list that this returns."""
    made: MadeChunks = []

    def make(self: ChunkMaker, chunks: list[Chunk]) -> Iterator[Chunk]:
        for number, chunk in enumerate(chunks):
            self.write_chunk(prepare_unit(self, chunks, number), chunks=chunks, crash_reasons={})
            made.append(chunk.name)
            yield chunk

    monkeypatch.setattr(cluster, "connect_to_ray", lambda runtime: contextlib.nullcontext())
    monkeypatch.setattr(ChunkMaker, "make", make)
    return made


def prepare_unit(maker: ChunkMaker, chunks: list[Chunk], number: int) -> dict[str, Any]:
    """Prepare the EEG of one chunk, as the first stage of the job does."""
    if "eeg" not in maker.data.modalities:
        return {"unit": number, "eeg": b"", "eeg_facts": "{}"}
    subject = chunks[number].recordings[0].subject
    own = [r for r in maker.all_recordings if r.subject == subject]
    (prepared,) = prepare_subject(
        {"subject_index": np.array([0])},
        unit_indices_by_subject=[[number]],
        recording_units=[c.recordings for c in chunks],
        data=maker.data,
        preprocessing=maker.preprocessing,
        subject_recordings={subject: own} if depends_on_subject(maker.preprocessing.eeg) else {},
        channels=maker.channels,
    )
    return {"unit": number, "eeg": prepared["eeg"][0], "eeg_facts": prepared["eeg_facts"][0]}


def change_once_read(monkeypatch: pytest.MonkeyPatch, recording_id: str, path: Path, data: bytes) -> None:
    """Write other bytes to a file as soon as a recording has been read and cut."""

    def cut_and_change(recording: Recording, *arguments: Any) -> WindowedRecording:
        found = cut_recording(recording, *arguments)
        if recording.id == recording_id:
            with path.open("r+b") as file:
                file.write(data)
        return found

    monkeypatch.setattr(pipeline, "cut_recording", cut_and_change)

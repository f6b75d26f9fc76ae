"""The preprocessing job in this process, without Ray: its chunks are made one after the other."""

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest

from eav_ray.data.preprocessing.windowing import WindowedRecording
from eav_ray.data.recordings import Recording
from eav_ray.distributed import cluster
from eav_ray.pipelines.preprocess import preprocess as pipeline
from eav_ray.pipelines.preprocess.chunks import Chunk
from eav_ray.pipelines.preprocess.eeg_stage import prepare_subject

MadeChunks = list[str]  # names


def run_in_process(monkeypatch: pytest.MonkeyPatch) -> MadeChunks:
    """Let `preprocess` make its chunks here; what it makes is appended to the list that this returns."""
    made: MadeChunks = []

    def run_tasks(self: pipeline.ChunkMaker, chunks: list[Chunk], crash_reasons: dict[str, str]) -> Iterator[Chunk]:
        for number, chunk in enumerate(chunks):
            own = [r for r in self.all_recordings if r.subject == chunk.recordings[0].subject]
            batch = {"subject_index": np.array([0])}
            row = {"unit": number, "eeg": b"", "eeg_facts": "{}"}
            if "eeg" in self.data.modalities:
                (prepared,) = prepare_subject(
                    batch,
                    unit_indices_by_subject=[[number]],
                    recording_units=[c.recordings for c in chunks],
                    data=self.data,
                    preprocessing=self.preprocessing,
                    subject_recordings={own[0].subject: own} if self.preprocessing.eeg.align != "none" else {},
                    channels=self.channels,
                )
                row |= {"eeg": prepared["eeg"][0], "eeg_facts": prepared["eeg_facts"][0]}
            self.write_chunk(row, chunks=chunks, crash_reasons=crash_reasons)
            made.append(chunk.name)
            yield chunk

    monkeypatch.setattr(pipeline, "configure_ray_data", lambda: None)
    monkeypatch.setattr(cluster, "connect_to_ray", lambda runtime: contextlib.nullcontext())
    monkeypatch.setattr(pipeline.ChunkMaker, "_run_tasks", run_tasks)
    return made


def change_while_cutting(monkeypatch: pytest.MonkeyPatch, change: dict[str, bytes]) -> None:
    """Write other bytes to files once their recording, by its id, has been read: `id|path` -> bytes."""
    cut = pipeline.ChunkMaker._cut

    def cut_and_change(self: pipeline.ChunkMaker, recording: Recording, eeg: object) -> WindowedRecording:
        found = cut(self, recording, eeg)  # type: ignore[arg-type]
        for key, data in change.items():
            recording_id, path = key.split("|")
            if recording_id == recording.id:
                with open(path, "r+b") as file:
                    file.write(data)
        return found

    monkeypatch.setattr(pipeline.ChunkMaker, "_cut", cut_and_change)

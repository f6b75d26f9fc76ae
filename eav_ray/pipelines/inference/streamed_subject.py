"""Measure the subject of a stream while it runs, for models that normalise within subjects."""

import math
from typing import Any

from eav_ray.data.streaming.stream import StreamSnapshot
from eav_ray.evaluation.predictor import Predictor
from eav_ray.evaluation.subject_measurement import MIN_WINDOWS, SubjectMeasurement


class StreamedSubject:
    """What is known of the subject who streams, and when it changes.

    Where the access level is `unlabelled_block` it grows as long as the stream lasts; else what was measured first, or
    was sent, stays.

    Args:
        n_windows: By so many windows of a stream a modality is measured before it is used.
    """

    def __init__(self, predictor: Predictor, n_windows: int) -> None:
        self._predictor = predictor
        self.n_wanted = dict.fromkeys(predictor.subject_normalised, n_windows)
        self.measurement = SubjectMeasurement()
        self._grows, self._is_closed = predictor.access.access == "unlabelled_block", False
        self._measured_until_s = -math.inf
        self._sent: SubjectMeasurement | None = None

    def replace(self, measurement: SubjectMeasurement) -> None:
        """Go by what was measured before the stream, from the next answer on: the one before is being made perhaps."""
        self._sent = measurement

    def measure(self, row: dict[str, Any], snapshot: StreamSnapshot) -> dict[str, Any]:
        """Count a window, unless one that was counted overlaps with it.

        Returns:
            Of each modality that is normalised, `windows` that were counted, its `state` (measuring, growing, fixed),
            and whether it `changed` since the answer before.
        """
        sent, self._sent = self._sent, None
        access = self._predictor.access
        if sent is not None:
            self.measurement = sent
            self.n_wanted |= {m: MIN_WINDOWS for m in self.n_wanted if sent.has(m)}
            self._is_closed = not self._grows and sent.n_recordings >= access.access_recordings
        open_modalities = [
            m for m, n in self.n_wanted.items() if self._grows or not (self._is_closed or self.measurement.has(m, n))
        ]
        before = self.measurement
        window_s = self._predictor.preprocessing.window_s
        is_whole = snapshot.stop_s - snapshot.start_s >= window_s - 1e-6
        if open_modalities and is_whole and snapshot.start_s >= self._measured_until_s - 1e-6:
            closed = {f"has_{m}": False for m in self._predictor.subject_normalised if m not in open_modalities}
            self.measurement += self._predictor.measure_windows([row | closed])
            self._measured_until_s = snapshot.start_s + window_s
        described: dict[str, Any] = {}
        for m in self._predictor.subject_normalised:
            n_windows = self.measurement.n_windows.get(m, 0)
            state = "growing" if self._grows else "fixed"
            is_settled = self._is_closed or self.measurement.has(m, self.n_wanted[m])
            described[m] = {
                "windows": n_windows,
                "state": state if is_settled else "measuring",
                "changed": sent is not None or n_windows != before.n_windows.get(m, 0),
            }
        return described

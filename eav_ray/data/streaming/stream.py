"""A stream of EEG, audio and video, and the window that it makes every second, as preprocessing would cut it.

Audio and frames of a window are those of the file that the stream could have been. EEG differs where filters look
beyond the window: they see the last `EEG_CONTEXT_S` seconds and nothing that comes later, where those of a file see all
of it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import av
import numpy as np

from eav_ray.config import Preprocessing, VideoPreprocessing
from eav_ray.data.io import audio
from eav_ray.data.io.containers import DECODE_ERRORS
from eav_ray.data.io.face_crop import FaceCropper
from eav_ray.data.io.limits import MAX_AUDIO_HZ, MIN_AUDIO_HZ, limit_frames
from eav_ray.data.io.video import FrameResizer
from eav_ray.data.modalities.features import average_into_steps
from eav_ray.data.modalities.registry import get_modality, make_empty_window
from eav_ray.data.preprocessing.eeg import PreparedEEG
from eav_ray.data.preprocessing.windowing import MIN_COVERAGE, WindowFormat
from eav_ray.data.recordings import RawEEG, measure_overlap
from eav_ray.data.streaming import messages
from eav_ray.data.streaming.buffers import Frame, FrameBuffer, RowBuffer, SampleBuffer, select_frames
from eav_ray.data.streaming.upload import NOT_SENT, prepare_single_recording
from eav_ray.errors import DataError

HOP_S = 1.0  # an answer every second
EEG_CONTEXT_S = 20.0  # that its filters see
AUDIO_CONTEXT_S = 0.5  # of audio before the window, for the resampler
GRACE_S = 0.25  # an answer waits so long for the modality that is last
MAX_FPS = 120


@dataclass(frozen=True)
class StreamSnapshot:
    """What an answer is made of: copies, so that the stream can go on."""

    start_s: float  # of the window, on the sender's clock
    stop_s: float  # up to here it was heard
    eeg: RawEEG | None
    eeg_start_s: float
    audio_T: np.ndarray  # (samples,) at `audio_hz`
    audio_received_T: np.ndarray  # (samples,) whether it came
    audio_hz: int
    frames: tuple[Frame, ...]
    errors: dict[str, str]  # modality -> why its last piece was refused
    features: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)  # name -> times and rows of it


class LiveStream:
    """What one client streams."""

    def __init__(self, inputs: WindowFormat) -> None:
        self.inputs, self.preprocessing = inputs, inputs.preprocessing
        self.n_refused = 0  # pieces
        self.start_s: float | None = None  # time of the first sample
        self.newest_s = 0.0
        self.answered_s = 0.0
        self._errors: dict[str, str] = {}
        self._eeg: tuple[SampleBuffer, messages.Chunk] | None = None
        self._audio: SampleBuffer | None = None
        self._keep_s = self.preprocessing.window_s + 2 * HOP_S
        self._frames = FrameBuffer(self._keep_s, int(self._keep_s * MAX_FPS))
        self._rows = {
            m: RowBuffer(self._keep_s, int(self._keep_s * messages.MAX_FEATURE_HZ))
            for m in inputs.modalities
            if m in self.preprocessing.features
        }
        self._ends: dict[str, float] = {}  # modality -> how far it is
        self._jump_s = -np.inf  # time of the last piece that was refused for being ahead of the others
        self._due_since_s = 0.0  # wall time at which the next answer's end was first reached

    def push(self, message: bytes, wall_s: float) -> None:
        """Take one message.

        Args:
            wall_s: Of a clock that never goes back.
        Raises:
            DataError: It cannot be used; the stream goes on without it.
        """
        modality = ""
        try:
            chunk = messages.parse_chunk(message, list(self._rows))
            modality = chunk.modality
            self._ingest_chunk(chunk)
        except DataError as error:
            self.n_refused += 1
            if modality:
                self._errors[modality] = str(error)
            raise
        self._errors.pop(modality, None)
        if self._next_s <= self.newest_s and not self._due_since_s:
            self._due_since_s = wall_s

    def _ingest_chunk(self, chunk: messages.Chunk) -> None:
        if chunk.modality not in self.inputs.modalities:
            raise DataError(f"the model has no {chunk.modality}; it has {', '.join(self.inputs.modalities)}")
        if self.start_s is not None:
            self._check_time(chunk.time_s)
        match chunk.modality:
            case "eeg":
                messages.check_rate(chunk.hz, self.preprocessing.eeg.hz)
                raw = RawEEG(chunk.values_CT[:, :1], chunk.hz, chunk.channels, chunk.unit)
                messages.arrange_channels(raw, self.inputs)
                if self._eeg is None or _describe_format(self._eeg[1]) != _describe_format(chunk):
                    self._eeg = SampleBuffer(len(chunk.values_CT), chunk.hz, EEG_CONTEXT_S + 2 * HOP_S), chunk
                end_s = self._append_samples(self._eeg[0], chunk)
            case "audio":
                if chunk.hz != int(chunk.hz) or not MIN_AUDIO_HZ <= chunk.hz <= MAX_AUDIO_HZ:
                    raise DataError(f"hz of audio is {chunk.hz:g}; {MIN_AUDIO_HZ} to {MAX_AUDIO_HZ} are taken")
                if self._audio is None or self._audio.hz != chunk.hz:
                    self._audio = SampleBuffer(1, chunk.hz, self._keep_s + AUDIO_CONTEXT_S)
                end_s = self._append_samples(self._audio, chunk)
            case m if m in self._rows:
                wanted = self.preprocessing.features[m].n_features
                if len(chunk.row) != wanted:
                    raise DataError(f"a row of {m} has {len(chunk.row)} features; the model wants {wanted}")
                self._rows[m].push(chunk.time_s, chunk.row)
                end_s = chunk.time_s
            case _:
                self._frames.push(chunk.time_s, chunk.jpeg)
                end_s = chunk.time_s
        if self.start_s is None:
            self.start_s = self.answered_s = chunk.time_s
            self.newest_s = end_s
        self._ends[chunk.modality] = max(end_s, self._ends.get(chunk.modality, end_s))
        self.newest_s = max(self.newest_s, end_s)

    def _check_time(self, time_s: float) -> None:
        """Refuse what is too late to be used, and what jumps ahead, unless the piece before it did the same.

        A single damaged time stamp would hold up the answers until the others have reached it. After an outage all
        jump.
        """
        gap_s, newest = self.preprocessing.window_s, f"the newest of this stream, {self.newest_s:g}"
        if time_s < self.newest_s - self._keep_s:
            raise DataError(
                f"time is {time_s:g}, more than {self._keep_s:g} s before {newest}; begin a new stream for a new clock"
            )
        if time_s > self.newest_s + gap_s:
            is_confirmed, self._jump_s = abs(time_s - self._jump_s) <= gap_s, time_s
            if not is_confirmed:
                raise DataError(
                    f"time is {time_s:g}, more than {gap_s} s after {newest}; it is taken if the next piece is from "
                    "then too"
                )

    def _append_samples(self, samples: SampleBuffer, chunk: messages.Chunk) -> float:
        seconds = chunk.values_CT.shape[1] / chunk.hz
        if seconds > self.preprocessing.window_s:
            raise DataError(
                f"a piece of {chunk.modality} is {seconds:g} s long; send at most {self.preprocessing.window_s} s"
            )
        samples.push(chunk.time_s, chunk.values_CT)
        return chunk.time_s + seconds

    @property
    def _next_s(self) -> float:
        return self.answered_s + HOP_S - 1e-6 if self.start_s is not None else np.inf

    def find_due_window_end(self, wall_s: float) -> float | None:
        """The end of the window to answer on now: a whole number of seconds after the stream's start; None for not yet.

        It waits for modalities that are a little late. Seconds that nobody could answer in time are left out.
        """
        if self.start_s is None or self.newest_s < self._next_s:
            return None
        end_s = self.start_s + np.floor((self.newest_s - self.start_s) / HOP_S + 1e-6) * HOP_S
        # Frames come one by one: the last before the end is up to a frame early.
        slack_s = {"video": 1 / self.preprocessing.video.fps}
        # So do rows of features, each of which is the last of its part perhaps.
        slack_s |= {m: self.preprocessing.window_s / self.preprocessing.features[m].steps for m in self._rows}
        late_modalities = [
            m
            for m, at_s in self._ends.items()
            if at_s < end_s - slack_s.get(m, 1e-6) and at_s > end_s - self.preprocessing.window_s
        ]
        if late_modalities and self.newest_s < end_s + GRACE_S and wall_s < self._due_since_s + GRACE_S:
            return None
        return float(end_s)

    def take_snapshot(self, end_s: float) -> StreamSnapshot:
        """What there is of the window that ends at a time, or of the first, if the stream is younger."""
        assert self.start_s is not None
        self.answered_s, self._due_since_s = end_s, 0.0
        window_s = self.preprocessing.window_s
        start_s = max(self.start_s, end_s - window_s)
        eeg, eeg_start_s = None, start_s
        if self._eeg is not None:
            samples, template = self._eeg
            x_CT, eeg_start_s = samples.read_last_contiguous(end_s)
            n_kept = round(EEG_CONTEXT_S * template.hz)
            eeg_start_s += max(x_CT.shape[1] - n_kept, 0) / template.hz
            eeg = RawEEG(x_CT[:, -n_kept:], template.hz, template.channels, template.unit)
        sound, heard, hz = np.zeros(0, np.float32), np.zeros(0, bool), self.preprocessing.audio.hz
        if self._audio is not None:
            hz = int(self._audio.hz)
            x_CT, heard = self._audio.read_span(start_s - AUDIO_CONTEXT_S, end_s - start_s + AUDIO_CONTEXT_S)
            sound = x_CT[0]
        frames = tuple(self._frames.list_frames_before(end_s))
        features = {m: rows.read_span(start_s, end_s) for m, rows in self._rows.items()}
        return StreamSnapshot(start_s, end_s, eeg, eeg_start_s, sound, heard, hz, frames, dict(self._errors), features)


def _describe_format(chunk: messages.Chunk) -> tuple[object, ...]:
    return chunk.hz, chunk.channels, chunk.unit, len(chunk.values_CT)


def make_window(snapshot: StreamSnapshot, inputs: WindowFormat) -> tuple[dict[str, object], dict[str, str]]:
    """One window as `windowing.cut_recording` makes it, and for each modality that is not in it, why.

    A modality is present where it covers at least half of the window; what it lacks is zeros (video: the frame before
    it, or else after it).
    """
    preprocessing, window_s = inputs.preprocessing, inputs.preprocessing.window_s
    row: dict[str, object] = {"subject": "stream", "recording": "stream", "window": 0, "label": 0}
    reasons: dict[str, str] = {}
    for m in inputs.modalities:
        values, seconds = make_empty_window(m, preprocessing, inputs.eeg_channels), 0.0
        try:
            match m:
                case "eeg" if snapshot.eeg is not None:
                    seconds = _fill_eeg(snapshot, inputs, values)
                case "audio" if snapshot.audio_T.size:
                    seconds = _fill_audio(snapshot, preprocessing, values)
                case "video" if snapshot.frames:
                    values, seconds = _make_video(snapshot, preprocessing, values)
                case _ if len(snapshot.features.get(m, ((), ()))[0]):
                    values, seconds = _make_features(snapshot, m, preprocessing)
                case _:
                    raise DataError(snapshot.errors.get(m, NOT_SENT))
            if not get_modality(m).is_known(values):
                raise DataError(f"no number of the last {window_s} s is known")
            if seconds < MIN_COVERAGE * window_s - 1e-6:
                late = f": {snapshot.errors[m]}" if m in snapshot.errors else ""
                raise DataError(f"{seconds:.1f} of the last {window_s} s came{late}")
        except DataError as error:
            reasons[m] = str(error)
            values = np.zeros_like(values)
        row |= {m: values, f"has_{m}": m not in reasons}
    return row, reasons


def _fill_eeg(snapshot: StreamSnapshot, inputs: WindowFormat, out_CT: np.ndarray) -> float:
    assert snapshot.eeg is not None
    hz, window_s = inputs.preprocessing.eeg.hz, inputs.preprocessing.window_s
    seconds = snapshot.eeg.values_CT.shape[1] / snapshot.eeg.hz
    inside_s = snapshot.eeg_start_s + seconds - max(snapshot.start_s, snapshot.eeg_start_s)
    if inside_s < MIN_COVERAGE * window_s - 1e-6:
        return max(inside_s, 0.0)  # too little to filter
    prepared = prepare_single_recording(snapshot.eeg, inputs)
    if not isinstance(prepared, PreparedEEG):
        raise prepared
    # Of the window in the run; negative where the run is younger.
    at = round((snapshot.start_s - snapshot.eeg_start_s) * hz)
    piece = prepared.x_CT[:, max(at, 0) : at + out_CT.shape[1]]
    out_CT[:, max(-at, 0) : max(-at, 0) + piece.shape[1]] = piece
    first_s = max(at, 0) / hz
    missing_s = measure_overlap(prepared.missing_s, first_s, first_s + piece.shape[1] / hz)
    return piece.shape[1] / hz - missing_s


def _fill_audio(snapshot: StreamSnapshot, preprocessing: Preprocessing, out_T: np.ndarray) -> float:
    hz = preprocessing.audio.hz
    x_T = audio.resample_audio(snapshot.audio_T, snapshot.audio_hz, hz, "audio")[round(AUDIO_CONTEXT_S * hz) :]
    out_T[: len(x_T)] = x_T[: len(out_T)]
    return float(snapshot.audio_received_T[round(AUDIO_CONTEXT_S * snapshot.audio_hz) :].sum() / snapshot.audio_hz)


def _make_features(snapshot: StreamSnapshot, name: str, preprocessing: Preprocessing) -> tuple[np.ndarray, float]:
    """The parts of a window that have a row, and the seconds that rows speak of: each up to the next.

    A row speaks of no more than a part of the window.
    """
    section, window_s = preprocessing.features[name], preprocessing.window_s
    times, rows = snapshot.features[name]
    since_s = np.maximum(times - snapshot.start_s, 0)  # what is rounded must not fall before the window
    values = average_into_steps(since_s, rows, window_s, section.steps, window_s)
    longest_s = window_s / section.steps
    spans = np.diff(np.append(times, snapshot.stop_s))
    return values, float(np.minimum(spans, longest_s).sum())


def _make_video(snapshot: StreamSnapshot, preprocessing: Preprocessing, empty: np.ndarray) -> tuple[np.ndarray, float]:
    """Frames that cannot be decoded are as if they had not come."""
    video = preprocessing.video
    while True:
        frames = [frame for frame in snapshot.frames if not frame.is_undecodable]
        times = np.array([f.time_s for f in frames])
        indices, seconds = select_frames(times, snapshot.start_s, snapshot.stop_s, video.fps, len(empty))
        if not indices.size or seconds < MIN_COVERAGE * preprocessing.window_s - 1e-6:
            return empty, seconds
        pictures = _resize_frames([frames[i] for i in indices.tolist()], video)
        if pictures:
            return np.stack(pictures), seconds


def _resize_frames(frames: Sequence[Frame], video: VideoPreprocessing) -> list[np.ndarray]:
    """Frames at the size of `preprocessing.video`; none, where one of them cannot be decoded, which they say from then
    on.

    One is decoded at a time: those of a window, whole, would take gigabytes where they are large.
    """
    cropper, resized = FaceCropper(video.size, video.face_step), list[np.ndarray]()
    for frame, count in Counter(frames).items():
        picture = resize_frame(frame, video)
        if picture is None:
            frame.is_undecodable = True
        elif isinstance(picture, np.ndarray):
            resized += [picture] * count
        else:
            for _ in range(count):
                cropper.add(picture, 1)
    if any(frame.is_undecodable for frame in frames):
        return []
    cropper.flush()
    return resized or cropper.pictures


def resize_frame(frame: Frame, video: VideoPreprocessing) -> np.ndarray | av.VideoFrame | None:
    """Decode a frame at the size of `preprocessing.video`, once; None where it cannot be.

    The box around a face follows it from frame to frame, so that a picture of one window is not that of the next: with
    it, frames as they came.
    """
    if frame.resized is None:
        decoder = av.CodecContext.create("mjpeg", "r")
        assert isinstance(decoder, av.VideoCodecContext)
        limit_frames(decoder)
        try:
            decoded = [*decoder.decode(av.Packet(frame.jpeg)), *decoder.decode(None)]
        except DECODE_ERRORS:
            decoded = []
        if not decoded or video.crop == "face":
            return decoded[0] if decoded else None
        whole = FrameResizer(video.size)
        whole.add(decoded[0], 1)
        frame.resized = whole.pictures[0]
    return frame.resized

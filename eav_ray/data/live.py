"""A stream of EEG, audio and video, and the window that it makes every second, as preprocessing would cut it.

Audio and frames of a window are those of the file that the stream could have been. EEG differs where filters look
beyond the window: they see the last `EEG_S` seconds and nothing that comes later, where those of a file see all of it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import av
import numpy as np

from eav_ray.config import Modality, Preprocessing, VideoPreprocessing
from eav_ray.data import audio, wire
from eav_ray.data.buffers import Frame, Frames, Samples, select_frames
from eav_ray.data.face import FaceCropper
from eav_ray.data.manifest import RawEEG
from eav_ray.data.session import PreparedEEG
from eav_ray.data.shard import window_shapes
from eav_ray.data.upload import NOT_SENT, prepared_of
from eav_ray.data.video import DECODE_ERRORS, FrameResizer
from eav_ray.data.windows import MIN_COVERAGE
from eav_ray.errors import DataError

HOP_S = 1.0  # an answer every second
EEG_S = 20.0  # that its filters see
EDGE_S = 0.5  # of audio before the window, for the resampler
GRACE_S = 0.25  # an answer waits so long for the modality that is last
JUMP_S = 60.0  # a time stamp this far from the others is damaged
MOST_FPS = 120


@dataclass(frozen=True)
class Snapshot:
    """What an answer is made of: copies, so that the stream can go on."""

    start_s: float  # of the window, on the sender's clock
    stop_s: float  # up to here it was heard
    eeg: RawEEG | None
    eeg_start_s: float
    eeg_named: bool
    sound: np.ndarray  # (samples,) at `sound_hz`
    heard: np.ndarray  # (samples,) whether it came
    sound_hz: int
    frames: tuple[Frame, ...]
    wrong: dict[str, str]  # modality -> why its last piece was refused


class Live:
    """What one client streams.

    Args:
        modalities: Of the model.
        montage: Names of its EEG channels, where they are known.
    """

    def __init__(
        self, preprocessing: Preprocessing, modalities: Sequence[Modality], eeg_channels: int, montage: tuple[str, ...]
    ) -> None:
        self.preprocessing, self.modalities = preprocessing, tuple(modalities)
        self.eeg_channels, self.montage = eeg_channels, montage
        self.refused = 0  # pieces
        self.start_s: float | None = None  # time of the first sample
        self.newest_s = 0.0
        self.answered_s = 0.0
        self._wrong: dict[str, str] = {}
        self._eeg: tuple[Samples, wire.Chunk] | None = None
        self._audio: Samples | None = None
        self._frames = Frames(preprocessing.window_s + 2 * HOP_S, int((preprocessing.window_s + 2 * HOP_S) * MOST_FPS))
        self._ends: dict[str, float] = {}  # modality -> how far it is
        self._passed = 0.0  # wall time at which the next answer's end was first reached

    def push(self, message: bytes, wall_s: float) -> None:
        """Take one message.

        Args:
            wall_s: Of a clock that never goes back.
        Raises:
            DataError: It cannot be used; the stream goes on without it.
        """
        modality = ""
        try:
            chunk = wire.chunk_of(message)
            modality = chunk.modality
            self._take(chunk)
        except DataError as error:
            self.refused += 1
            if modality:
                self._wrong[modality] = str(error)
            raise
        self._wrong.pop(modality, None)
        if self._next_s <= self.newest_s and not self._passed:
            self._passed = wall_s

    def _take(self, chunk: wire.Chunk) -> None:
        if chunk.modality not in self.modalities:
            raise DataError(f"the model has no {chunk.modality}; it has {', '.join(self.modalities)}")
        if self.start_s is not None and abs(chunk.time_s - self.newest_s) > JUMP_S:
            raise DataError(
                f"time is {chunk.time_s:g}, more than {JUMP_S:g} s from the newest of this stream, {self.newest_s:g}; "
                "begin a new stream for a new clock"
            )
        keep_s = self.preprocessing.window_s + 2 * HOP_S
        match chunk.modality:
            case "eeg":
                self._check_eeg(chunk)
                if self._eeg is None or not _same(self._eeg[1], chunk):
                    self._eeg = Samples(len(chunk.values_CT), chunk.hz, EEG_S + 2 * HOP_S), chunk
                end_s = self._add(self._eeg[0], chunk)
            case "audio":
                if chunk.hz != int(chunk.hz) or not audio.MIN_AUDIO_HZ <= chunk.hz <= audio.MAX_AUDIO_HZ:
                    raise DataError(
                        f"hz of audio is {chunk.hz:g}; {audio.MIN_AUDIO_HZ} to {audio.MAX_AUDIO_HZ} are taken"
                    )
                if self._audio is None or self._audio.hz != chunk.hz:
                    self._audio = Samples(1, chunk.hz, keep_s + EDGE_S)
                end_s = self._add(self._audio, chunk)
            case _:
                self._frames.push(chunk.time_s, chunk.jpeg)
                end_s = chunk.time_s
        if self.start_s is None:
            self.start_s = self.answered_s = chunk.time_s
            self.newest_s = end_s
        self._ends[chunk.modality] = max(end_s, self._ends.get(chunk.modality, end_s))
        self.newest_s = max(self.newest_s, end_s)

    def _check_eeg(self, chunk: wire.Chunk) -> None:
        wire.check_rate(chunk.hz, self.preprocessing.eeg.hz)
        names = chunk.channels or tuple(map(str, range(len(chunk.values_CT))))
        raw = RawEEG(chunk.values_CT[:, :1], chunk.hz, names, chunk.unit)
        wire.arranged(raw, self.eeg_channels, self.montage, named=bool(chunk.channels))

    def _add(self, samples: Samples, chunk: wire.Chunk) -> float:
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

    def due(self, wall_s: float) -> float | None:
        """The end of the window to answer on now: a whole number of seconds after the stream's start; None for not yet.

        It waits for modalities that are a little late. Seconds that nobody could answer in time are left out.
        """
        if self.start_s is None or self.newest_s < self._next_s:
            return None
        end_s = self.start_s + np.floor((self.newest_s - self.start_s) / HOP_S + 1e-6) * HOP_S
        # Frames come one by one: the last before the end is up to a frame early.
        slack_s = 1 / self.preprocessing.video.fps
        behind = [
            m
            for m, at_s in self._ends.items()
            if at_s < end_s - (slack_s if m == "video" else 1e-6) and at_s > end_s - self.preprocessing.window_s
        ]
        if behind and self.newest_s < end_s + GRACE_S and wall_s < self._passed + GRACE_S:
            return None
        return float(end_s)

    def snapshot(self, end_s: float) -> Snapshot:
        """What there is of the window that ends at a time, or of the first, if the stream is younger."""
        assert self.start_s is not None
        self.answered_s, self._passed = end_s, 0.0
        window_s = self.preprocessing.window_s
        start_s = max(self.start_s, end_s - window_s)
        eeg, eeg_start_s, named = None, start_s, False
        if self._eeg is not None:
            samples, like = self._eeg
            x_CT, eeg_start_s = samples.run(end_s)
            keep = round(EEG_S * like.hz)
            eeg_start_s += max(x_CT.shape[1] - keep, 0) / like.hz
            x_CT = x_CT[:, -keep:]
            named = bool(like.channels)
            names = like.channels or tuple(f"channel {i + 1}" for i in range(len(x_CT)))
            eeg = RawEEG(x_CT, like.hz, names, like.unit)
        sound, heard, hz = np.zeros(0, np.float32), np.zeros(0, bool), self.preprocessing.audio.hz
        if self._audio is not None:
            hz = int(self._audio.hz)
            x_CT, heard = self._audio.take(start_s - EDGE_S, end_s - start_s + EDGE_S)
            sound = x_CT[0]
        frames = tuple(self._frames.before(end_s))
        return Snapshot(start_s, end_s, eeg, eeg_start_s, named, sound, heard, hz, frames, dict(self._wrong))


def _same(a: wire.Chunk, b: wire.Chunk) -> bool:
    return (a.hz, a.channels, a.unit, len(a.values_CT)) == (b.hz, b.channels, b.unit, len(b.values_CT))


def window_of(
    shot: Snapshot,
    preprocessing: Preprocessing,
    modalities: Sequence[Modality],
    eeg_channels: int,
    montage: tuple[str, ...],
) -> tuple[dict[str, object], dict[str, str]]:
    """One window as `windows.cut` makes it, and for each modality that is not in it, why.

    A modality is present where it covers at least half of the window; what it lacks is zeros (video: its next frame,
    or the last one).
    """
    window_s = preprocessing.window_s
    row: dict[str, object] = {"subject": "stream", "recording": "stream", "window": 0, "label": 0}
    reasons: dict[str, str] = {}
    shapes = window_shapes(preprocessing, eeg_channels)
    for m in modalities:
        shape, dtype = shapes[m]
        values, seconds = np.zeros(shape, dtype.to_pandas_dtype()), 0.0
        try:
            match m:
                case "eeg" if shot.eeg is not None:
                    seconds = _eeg(shot, preprocessing, eeg_channels, montage, values)
                case "audio" if shot.sound.size:
                    seconds = _sound(shot, preprocessing, values)
                case "video" if shot.frames:
                    values, seconds = _film(shot, preprocessing, values)
                case _:
                    raise DataError(shot.wrong.get(m, NOT_SENT))
            if seconds < MIN_COVERAGE * window_s - 1e-6:
                late = f": {shot.wrong[m]}" if m in shot.wrong else ""
                raise DataError(f"{seconds:.1f} of the last {window_s} s came{late}")
        except DataError as error:
            reasons[m] = str(error)
            values = np.zeros(shape, dtype.to_pandas_dtype())
        row |= {m: values, f"has_{m}": m not in reasons}
    return row, reasons


def _eeg(
    shot: Snapshot, preprocessing: Preprocessing, channels: int, montage: tuple[str, ...], out_CT: np.ndarray
) -> float:
    assert shot.eeg is not None
    hz, window_s = preprocessing.eeg.hz, preprocessing.window_s
    seconds = shot.eeg.values_CT.shape[1] / shot.eeg.hz
    inside_s = shot.eeg_start_s + seconds - max(shot.start_s, shot.eeg_start_s)
    if inside_s < MIN_COVERAGE * window_s - 1e-6:
        return max(inside_s, 0.0)  # too little to filter
    found = prepared_of(shot.eeg, preprocessing, channels, montage, named=shot.eeg_named)
    if not isinstance(found, PreparedEEG):
        raise found
    at = round((shot.start_s - shot.eeg_start_s) * hz)  # of the window in the run; negative where the run is younger
    piece = found.x_CT[:, max(at, 0) : at + out_CT.shape[1]]
    out_CT[:, max(-at, 0) : max(-at, 0) + piece.shape[1]] = piece
    return piece.shape[1] / hz


def _sound(shot: Snapshot, preprocessing: Preprocessing, out_T: np.ndarray) -> float:
    hz = preprocessing.audio.hz
    x_T = audio.resample_audio(shot.sound, shot.sound_hz, hz, "audio")[round(EDGE_S * hz) :]
    out_T[: len(x_T)] = x_T[: len(out_T)]
    return float(shot.heard[round(EDGE_S * shot.sound_hz) :].sum() / shot.sound_hz)


def _film(shot: Snapshot, preprocessing: Preprocessing, empty: np.ndarray) -> tuple[np.ndarray, float]:
    """Frames that cannot be decoded are as if they had not come."""
    video = preprocessing.video
    while True:
        frames = [frame for frame in shot.frames if not frame.bad]
        times = np.array([f.time_s for f in frames])
        which, seconds = select_frames(times, shot.start_s, shot.stop_s, video.fps, len(empty))
        if not which.size or seconds < MIN_COVERAGE * preprocessing.window_s - 1e-6:
            return empty, seconds
        pictures = _pictures([frames[i] for i in which.tolist()], video)
        if pictures:
            return np.stack(pictures), seconds


def _pictures(wanted: Sequence[Frame], video: VideoPreprocessing) -> list[np.ndarray]:
    """Frames at the profile's size; none, where one of them cannot be decoded, which they say from then on.

    One is decoded at a time: those of a window, whole, would take gigabytes where they are large.
    """
    cropper, found = FaceCropper(video.size, video.face_step), list[np.ndarray]()
    for frame, times in Counter(wanted).items():
        picture = _picture(frame, video)
        if picture is None:
            frame.bad = True
        elif isinstance(picture, np.ndarray):
            found += [picture] * times
        else:
            for _ in range(times):
                cropper.add(picture, 1)
    if any(frame.bad for frame in wanted):
        return []
    cropper.flush()
    return found or cropper.pictures


def _picture(frame: Frame, video: VideoPreprocessing) -> np.ndarray | av.VideoFrame | None:
    """A frame at the profile's size, decoded once; None where it cannot be.

    The box around a face follows it from frame to frame, so that a picture of one window is not that of the next: with
    it, frames as they came.
    """
    if frame.picture is None:
        decoder = av.CodecContext.create("mjpeg", "r")
        assert isinstance(decoder, av.VideoCodecContext)
        try:
            found = [*decoder.decode(av.Packet(frame.jpeg)), *decoder.decode(None)]
        except DECODE_ERRORS:
            found = []
        if not found or video.crop == "face":
            return found[0] if found else None
        whole = FrameResizer(video.size)
        whole.add(found[0], 1)
        frame.picture = whole.pictures[0]
    return frame.picture

"""Media files as containers: which stream of a file is its film or its sound, and the clock that they share."""

from collections import Counter
from pathlib import Path

import av
import av.error
from av.container import InputContainer
from av.stream import Disposition, Stream

from eav_ray.errors import DataError

# PyAV's own errors, and what it lets through where a header holds nonsense.
DECODE_ERRORS = (av.error.FFmpegError, OSError, ValueError, ArithmeticError, IndexError, MemoryError)
MAX_MISSING_S = 0.5  # a stream may state a few frames more than it has
MAX_GAP_S = 60.0  # a damaged time stamp may claim years, and every frame of the gap would be filled
MAX_FRAMES_HZ = 240.0  # a rate that is guessed above is that of the clock and not of the frames
MAX_BACKWARD_S = 1.0  # time stamps that go back by more start again: what follows has no place in time
# What FFmpeg may take a file for, whatever its name is. Playlists, lists of files and pictures, and text that is drawn
# are not among them: they point to other files or to the network, or make a film of anything.
FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,apng,asf,au,av1,avi,caf,dts,dv,eac3,flac,flv,gif,gxf,h264,hevc,ivf,live_flv,loas,m4v,"
    "matroska,webm,mjpeg,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,mpegtsraw,mpegvideo,mpc,mpc8,mxf,nut,obu,oga,ogg,ogv,"
    "rm,sox,spx,tak,tta,vc1,voc,w64,wav,wtv,wv,xwma,yuv4mpegpipe"
)
# Streams without a container: FFmpeg supposes 25 frames a second where they do not say.
RAW_FILMS = ("h264", "hevc", "vvc", "mjpeg", "m4v", "mpegvideo", "obu", "av1", "vc1")
STILL_CODECS = ("mjpeg", "png", "bmp", "gif", "webp", "tiff", "jpeg2000")  # of cover pictures
COVERS = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image | Disposition.dependent
IMPAIRED = Disposition.hearing_impaired | Disposition.visual_impaired | Disposition.comment | Disposition.dub


def open_container(path: str | Path, timeout_s: float) -> InputContainer:
    """Open a file by what it holds and not by its name, which may lie; no other file is opened for it.

    Raises:
        ValueError: It is of no kind that is known, or one of `DECODE_ERRORS`.
    """
    try:
        return av.open(
            str(Path(path).absolute()),  # a name such as concat:a is no protocol
            metadata_errors="ignore",
            timeout=timeout_s,
            options={"format_whitelist": FORMATS, "protocol_whitelist": "file"},
        )
    except av.error.ArgumentError:  # which the list gives rise to
        raise ValueError("it is no film or sound of a known kind") from None


def select_film(container: InputContainer, path: str | Path, timeout_s: float) -> tuple[av.VideoStream, list[str]]:
    """Find the stream that a player shows: the default one, else that of most pixels, else of most frames.

    A cover picture is never the film, whether the file calls it one or it is a single picture beside a film.

    Returns:
        The stream, and remarks.
    Raises:
        DataError: There is none.
    """
    videos = list(container.streams.video)
    films = _list_films(container)
    remarks = ["a cover picture beside the film was left out"] if 0 < len(films) < len(videos) else []
    if len(films) > 1:
        n_packets = _count_packets(path, timeout_s, [s.index for s in films])
        moving = [s for s in films if n_packets[s.index] > 1] or films
        if len(moving) < len(films):
            remarks = ["a cover picture beside the film was left out"]
        films = sorted(moving, key=lambda s: _rank_film(s, n_packets[s.index]), reverse=True)
    if not films:
        reason = "it has no video stream"
        if videos:
            reason = "it has no film, only a cover picture"
        raise DataError(f"{path} cannot be decoded as video ({reason}); replace it or leave its video out")
    if len(films) > 1:
        number = videos.index(films[0]) + 1
        remarks.append(f"of {len(films)} films in one file, number {number} was taken, which a player shows first")
    return films[0], remarks


def _rank_film(stream: av.VideoStream, n_packets: int) -> tuple[bool, int, int, int]:
    decoder = stream.codec_context
    n_pixels = decoder.width * decoder.height if decoder else 0
    return bool(stream.disposition & Disposition.default), n_pixels, n_packets, -stream.index


def _count_packets(path: str | Path, timeout_s: float, indices: list[int]) -> Counter[int]:
    """Count the packets of some streams, for the rare file that has several films."""
    counts: Counter[int] = Counter()
    with open_container(path, timeout_s) as container:
        try:
            for packet in container.demux([container.streams[i] for i in indices]):
                counts[packet.stream_index] += packet.size > 0
        except DECODE_ERRORS:
            pass  # what the file has up to here was counted
    return counts


def select_sound(container: InputContainer) -> tuple[av.AudioStream | None, list[str]]:
    """Find the sound that a player plays: the default one that is not for few listeners, else the first.

    Returns:
        The stream, None where there is none, and remarks.
    """
    sounds = list(container.streams.audio)
    if not sounds:
        return None, []
    best = max(sounds, key=lambda s: (not s.disposition & IMPAIRED, bool(s.disposition & Disposition.default)))
    if len(sounds) == 1:
        return best, []
    number = sounds.index(best) + 1
    return best, [f"of {len(sounds)} sounds in one file, number {number} was taken, which a player plays first"]


def read_start_s(container: InputContainer) -> float | None:
    """Read when the earliest of a file's films and sounds begins, by its stamps; None where it does not say.

    From here the times of all of them count: players begin with the earliest stream and keep the others as late as
    they are, so that a film read without its sound has the same times as with it. Where the film follows within one of
    its frames, they count from the film: that much is what the encoder of the sound puts before it.
    """
    sound_s, film_s = (
        [_read_stream_start_s(s) for s in streams] for streams in (container.streams.audio, _list_films(container))
    )
    starts_s = [s for s in (*sound_s, *film_s) if s is not None]
    first_film_s = min((s for s in film_s if s is not None), default=None)
    if first_film_s is not None and first_film_s - min(starts_s) < min(map(read_frame_s, _list_films(container))):
        return first_film_s
    return min(starts_s, default=None)


def _list_films(container: InputContainer) -> list[av.VideoStream]:
    return [s for s in container.streams.video if not s.disposition & COVERS]


def _read_stream_start_s(stream: Stream) -> float | None:
    return (
        None if stream.start_time is None or stream.time_base is None else float(stream.start_time * stream.time_base)
    )


def read_lateness_s(stream: Stream, start_s: float | None) -> float:
    """Seconds from the beginning of a file to that of one of its streams; 0 where it does not say."""
    stream_start_s = _read_stream_start_s(stream)
    return 0.0 if start_s is None or stream_start_s is None else stream_start_s - start_s


def read_frame_s(stream: av.VideoStream) -> float:
    """Seconds between two frames where none is missing; 0 where the file does not say."""
    average, guessed = float(stream.average_rate or 0), float(stream.guessed_rate or 0)
    rate = guessed if average < guessed <= MAX_FRAMES_HZ else average or guessed  # gaps lower the average
    return 1 / rate if rate else 0.0


def require_known_rate(container: InputContainer, stream: av.VideoStream, path: str | Path) -> None:
    """Raise DataError for a film without time stamps that does not say its rate either, which would be a guess."""
    if container.format.name in RAW_FILMS and not (stream.codec_context and stream.codec_context.framerate):
        raise DataError(
            f"{path} is a bare stream of frames, which says neither their times nor their rate; put it into a "
            "container with the rate of its camera, for example `ffmpeg -framerate 30 -i FILE -c copy FILE.mp4`"
        )


def read_duration_s(container: InputContainer, stream: av.VideoStream | av.AudioStream) -> float:
    """Seconds that a stream lasts by its file; 0 where it does not say. A Flash file says one length for all."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.format.name == "flv" and container.duration:
        return container.duration / av.time_base
    return 0.0

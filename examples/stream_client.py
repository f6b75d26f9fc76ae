"""Stream files to a server as a microphone, a camera and an amplifier would, and print what it answers.

    eav serve best --port 8000
    python examples/stream_client.py ws://127.0.0.1:8000/stream --audio speech.wav --video face.mp4

The token of a server that wants one is taken from EAV_RAY_SERVE_TOKEN. It needs the package `websockets`.
"""

import argparse
import io
import json
import os
import threading
import time
from collections.abc import Iterator

import av
import mne
import numpy as np
import soundfile
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

PIECE_S = 0.2  # seconds of samples in a message


def encode_message(payload: bytes, **header: object) -> bytes:
    """Put a line of JSON before samples: all there is to a message."""
    return json.dumps(header).encode() + b"\n" + payload


def list_pieces(count: int, hz: float) -> Iterator[tuple[float, slice]]:
    """Cut samples into pieces, each with the time of its first sample in seconds."""
    size = max(1, round(PIECE_S * hz))
    for start in range(0, count, size):
        yield start / hz, slice(start, start + size)


def read_audio(path: str) -> Iterator[tuple[float, bytes]]:
    """Yield messages of a sound file, each with the time at which a microphone would have it."""
    samples_TC, hz = soundfile.read(path, dtype="int16", always_2d=True)
    for time_s, part in list_pieces(len(samples_TC), hz):
        header = {"modality": "audio", "time": time_s, "hz": hz, "channels": samples_TC.shape[1], "dtype": "int16"}
        yield time_s + PIECE_S, encode_message(samples_TC[part].astype("<i2").tobytes(), **header)


def read_eeg(path: str) -> Iterator[tuple[float, bytes]]:
    """Yield messages of an EEG file of any format that MNE reads: all channels of a moment lie side by side."""
    raw = mne.io.read_raw(path, verbose="ERROR").pick("eeg")
    values_CT, hz = np.asarray(raw.get_data()), float(raw.info["sfreq"])
    for time_s, part in list_pieces(values_CT.shape[1], hz):
        header = {"modality": "eeg", "time": time_s, "hz": hz, "channels": raw.ch_names, "unit": "volt"}
        yield time_s + PIECE_S, encode_message(values_CT[:, part].T.astype("<f4").tobytes(), **header)


def read_video(path: str) -> Iterator[tuple[float, bytes]]:
    """Yield a message for each frame of a film, as a JPEG file."""
    with av.open(path) as container:
        for frame in container.decode(video=0):
            sink = io.BytesIO()
            frame.to_image().save(sink, "JPEG", quality=90)
            time_s = float(frame.time or 0.0)
            yield time_s, encode_message(sink.getvalue(), modality="video", time=time_s)


def print_answers(socket: ClientConnection, answered_s: list[float]) -> None:
    """Print a line for each answer, until the connection ends.

    Args:
        answered_s: Is given the time of each window that was answered.
    """
    try:
        for text in socket:
            answer = json.loads(text)
            if answer.get("error"):
                print(f"refused: {answer['error']}", flush=True)
            if "waiting" in answer:
                continue
            answered_s.append(answer["time"])
            said = "nothing can be used"
            if answer["predicted"] is not None:
                share = answer["probabilities"][answer["predicted"]]
                said = f"{answer['predicted']} {share:.2f} by {', '.join(answer['used'])}"
            print(f"{answer['time']:7.2f} s  {said}", flush=True)
    except ConnectionClosed as closed:
        print(f"the server ended the stream: {closed}", flush=True)


def stream(url: str, messages: list[tuple[float, bytes]], *, speed: float = 1.0, token: str = "") -> None:
    """Send messages when they are due, and print the answers.

    Args:
        messages: Seconds at which each is due, and its bytes.
        speed: How many times as fast as they were recorded.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answered_s: list[float] = []
    with connect(url, additional_headers=headers) as socket:
        listener = threading.Thread(target=print_answers, args=(socket, answered_s))
        listener.start()
        began = time.monotonic()
        for due_s, message in sorted(messages, key=lambda pair: pair[0]):
            time.sleep(max(0.0, began + due_s / speed - time.monotonic()))
            socket.send(message)
        end_s = max(due_s for due_s, _ in messages)
        give_up = time.monotonic() + 10
        while (not answered_s or answered_s[-1] < end_s - 1) and time.monotonic() < give_up and listener.is_alive():
            time.sleep(0.05)  # the last whole second is answered yet
        socket.close()
        listener.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="such as ws://127.0.0.1:8000/stream")
    readers = {"audio": read_audio, "eeg": read_eeg, "video": read_video}
    for modality in readers:
        parser.add_argument(f"--{modality}", metavar="FILE")
    parser.add_argument("--speed", type=float, default=1.0, help="how many times as fast as it was recorded")
    words = vars(parser.parse_args())
    messages = [message for m, read in readers.items() if words[m] for message in read(words[m])]
    if not messages:
        parser.error("give a file with --audio, --eeg or --video")
    stream(words["url"], messages, speed=words["speed"], token=os.environ.get("EAV_RAY_SERVE_TOKEN", ""))


if __name__ == "__main__":
    main()

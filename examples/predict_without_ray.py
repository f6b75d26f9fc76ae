"""Predict a recording of raw arrays with a folder that `eav export` wrote: no Ray, no cluster, no data set.

python examples/predict_without_ray.py FOLDER
"""

import sys

import numpy as np

import eav_ray

predictor = eav_ray.Predictor(sys.argv[1], device="cpu")
rng = np.random.default_rng(0)  # ten seconds of noise in place of somebody
channels = predictor.eeg_channels
found = predictor.predict(
    eeg=rng.normal(0, 20, 5000) + rng.normal(0, 10, (len(channels), 5000)),  # all of a scalp has much in common
    eeg_hz=500,
    eeg_channels=channels,
    eeg_unit="microvolt",
    audio=rng.normal(0, 0.1, 160_000).clip(-1, 1),
    audio_hz=16_000,
    video=rng.integers(0, 256, (50, 48, 64, 3)).astype(np.uint8),
    video_fps=5,
)
print(f"{found.predicted} by {', '.join(found.used)}; {len(found.windows)} windows")
for name, share in found.probabilities.items():
    print(f"{name:12}{share:.4f}")

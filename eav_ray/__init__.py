"""Distributed emotion recognition from EEG, audio and video, on Ray."""

"""Compressed audio files made by FFmpeg's encoders, and what damages them."""

from pathlib import Path

import av
import numpy as np

# Suffix, codec, container and the rate that the codec takes.
KINDS = {
    "mp3": ("libmp3lame", "mp3", 16_000),
    "opus": ("libopus", "ogg", 48_000),
    "webm": ("libopus", "webm", 48_000),
    "m4a": ("aac", "ipod", 16_000),
    "mp4": ("aac", "mp4", 16_000),
    "aac": ("aac", "adts", 16_000),
    "wma": ("wmav2", "asf", 44_100),
    "amr": ("libopencore_amrnb", "amr", 8_000),
    "adpcm.wav": ("adpcm_ms", "wav", 16_000),
    "alac.m4a": ("alac", "ipod", 16_000),
    "alac.caf": ("alac", "caf", 16_000),
    "wv": ("wavpack", "wv", 16_000),
    "tta": ("tta", "tta", 16_000),
}


def encode(path: Path, samples: np.ndarray, kind: str, *, channels: int = 1, **options: str) -> None:
    """Writes int16 (samples,) at the rate of the kind; `options` are the container's."""
    codec, container, rate = KINDS[kind]
    layout = "mono" if channels == 1 else "stereo"
    with av.open(str(path), "w", format=container, options=options) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.layout = layout
        if codec in ("wmav2", "aac"):
            stream.bit_rate = 64_000
        frame = av.AudioFrame.from_ndarray(np.tile(samples, (channels, 1)).T.reshape(1, -1).copy(), format="s16", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
        for converted in [*resampler.resample(frame), *resampler.resample(None), None]:
            file.mux(stream.encode(converted))

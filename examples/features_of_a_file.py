"""Features of every layer of a model for one recording.

    python examples/features_of_a_file.py MODEL RECORDING

MODEL is a folder of `openwavlm export` or of Hugging Face, or a .pt file of Microsoft, fairseq or torchaudio. RECORDING is a file that
libsndfile reads, at any rate; several channels are averaged.
"""

import sys

import soundfile
import soxr
import torch

import openwavlm

SAMPLE_RATE_HZ = 16_000


def main(model_path: str, recording: str) -> None:
    """Prints the shape and the mean absolute value of each layer's features."""
    model = openwavlm.load(model_path)
    audio, rate = soundfile.read(recording, dtype="float32", always_2d=True)
    mono = soxr.resample(audio.mean(axis=1), rate, SAMPLE_RATE_HZ)
    waveform = torch.from_numpy(mono)[None]  # (batch, samples)
    with torch.no_grad():
        layers = model.extract(waveform)  # the encoder's input, then the output of each layer: (batch, frames, dim)
    print(f"{len(mono) / SAMPLE_RATE_HZ:.2f} s")
    for number, features in enumerate(layers):
        print(f"layer {number}: {tuple(features.shape)}, mean absolute value {features.abs().mean():.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:3])

"""s3prl's WavLM upstream on an exported file: every hidden state to 1e-5 of its level, by s3prl's own padding and masking.

A row's valid frames are counted by the rule of Microsoft's code there, which can be one more than ours; then our encoder is told of the
samples of that many frames.
"""

import importlib.util
import re
import sys
import types

import pytest
import torch
from torch import Tensor

from openwavlm.audio.frames import num_frames, num_samples_of
from openwavlm.checkpoints.fairseq import microsoft_bytes
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM, normalise
from openwavlm.runs.export_readme import readme
from random_models import TINY, TINY_LARGE, randomise

S3PRL = importlib.util.find_spec("s3prl")
pytestmark = [
    pytest.mark.skipif(S3PRL is None, reason="s3prl is not installed: make setup does it"),
    # torch's, of the masks that Microsoft's attention passes
    pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning"),
]

TOLERANCE = 1e-5
CONFIGS = pytest.mark.parametrize("config", [TINY, TINY_LARGE], ids=["Base", "Large"])


@pytest.fixture
def exported(config: WavLMConfig, tmp_path, monkeypatch):
    """A model, and s3prl's upstream as the README of `format=s3prl` loads it."""
    torch.manual_seed(0)
    model = WavLM(config)
    randomise(model)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "FOLDER" / "model.pt").write_bytes(microsoft_bytes(model))
    if importlib.util.find_spec("requests") is None:  # which s3prl imports to download files
        monkeypatch.setitem(sys.modules, "requests", types.ModuleType("requests"))
    page = readme("export-s3prl", "s3prl", updates=1, config=config)
    (snippet,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    found: dict = {}
    exec(compile(snippet, "README.md", "exec"), found)
    assert [tuple(state.shape) for state in found["states"]] == [(2, 99, config.dim)] * (config.layers + 1)
    return model, found["upstream"]


def recordings(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [0.1 * torch.randn(length, generator=generator) + 0.03 * row for row, length in enumerate(lengths)]


@torch.no_grad()
def our_states(model: WavLM, waveforms: list[Tensor], num_samples: Tensor) -> list[Tensor]:
    """States with `num_samples` masked; the waveforms are normalised over their own samples, as s3prl does before padding."""
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    if model.config.normalise_waveform:
        padded = normalise(padded, torch.tensor([len(waveform) for waveform in waveforms]))
    output = model(padded, num_samples)
    return [*output.hidden_states[:-1], output.final]


@torch.no_grad()
def their_states(upstream, waveforms: list[Tensor]) -> list[Tensor]:
    return list(upstream(waveforms)["hidden_states"])


def errors_by_row(ours: list[Tensor], theirs: list[Tensor], frames: Tensor) -> list[float]:
    """Largest difference of each row's first `frames` frames over all layers, relative to the layer's level."""
    assert len(ours) == len(theirs) and ours[0].shape == theirs[0].shape
    return [
        max(
            float((one[row, :valid] - other[row, :valid]).abs().max() / other.square().mean().sqrt())
            for one, other in zip(ours, theirs, strict=True)
        )
        for row, valid in enumerate(frames.tolist())
    ]


def their_count(upstream, lengths: Tensor) -> Tensor:
    """Valid frames of each row by the rule of Microsoft's code."""
    padding = torch.arange(int(lengths.max())) >= lengths.unsqueeze(-1)
    features = torch.empty(len(lengths), int(num_frames(lengths).max()), 1)
    return (~upstream.model.forward_padding_mask(features, padding)).sum(-1)


@CONFIGS
@pytest.mark.parametrize("lengths", [(20_000,), (16_001, 16_001)], ids=["alone", "of one length"])
def test_unpadded_recordings_have_our_hidden_states_in_s3prl(exported, lengths):
    model, upstream = exported
    waveforms, num_samples = recordings(*lengths), torch.tensor(lengths)
    errors = errors_by_row(our_states(model, waveforms, num_samples), their_states(upstream, waveforms), num_frames(num_samples))
    assert max(errors) < TOLERANCE


@CONFIGS
def test_padded_recordings_have_our_hidden_states_in_s3prl_where_as_many_frames_are_valid(exported):
    model, upstream = exported
    # Of 62 frames the rules agree on 16,080 to 16,100 samples (50 frames) and differ on 13,000 and 8,000.
    lengths = (20_000, 16_090, 13_000, 8_000)
    waveforms, num_samples = recordings(*lengths), torch.tensor(lengths)
    ours, theirs = num_frames(num_samples), their_count(upstream, num_samples)
    assert ours.tolist() == [62, 50, 40, 24] and theirs.tolist() == [62, 50, 41, 25]
    found = their_states(upstream, waveforms)
    errors = errors_by_row(our_states(model, waveforms, num_samples), found, ours)
    assert max(errors[:2]) < TOLERANCE and min(errors[2:]) > 0.1
    assert max(errors_by_row(our_states(model, waveforms, num_samples_of(theirs)), found, ours)) < TOLERANCE


def test_the_readme_names_the_rule_and_the_command():
    page = readme("export-s3prl", "s3prl", updates=1, config=TINY)
    assert "-u wavlm_local -k FOLDER/model.pt" in page and "can count one frame more" in page and "group norm" in page

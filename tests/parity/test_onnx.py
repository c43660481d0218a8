"""ONNX graphs against the models that they were written from, in onnxruntime: every output to 1e-4 of its level.

Batches, lengths and padding are others than those of the trace: a graph with a frozen length agrees at that length alone.
"""

import io
import logging
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import openwavlm
from openwavlm.audio.frames import num_frames
from openwavlm.checkpoints import onnx as exporter
from openwavlm.checkpoints.onnx import EncoderGraph, encoder_onnx_bytes, example_batch, onnx_bytes
from openwavlm.model.attention import toeplitz
from openwavlm.model.config import WavLMConfig
from openwavlm.model.transformer import TransformerEncoder
from openwavlm.model.wavlm import WavLM, normalise
from openwavlm.runs.export import export_run
from openwavlm.runs.export_readme import readme
from random_models import TINY, TINY_LARGE, randomise

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")

TOLERANCE = 1e-4
# One traced graph has the group norm, the closing norm and the normalisation; the usual pairs take as long again each.
MIXED = replace(TINY, layers=2, pre_norm=True, normalise_waveform=True)
UNTRACED_SAMPLES = (400, 719, 4_240, 16_000, 30_001)


def wavlm(config: WavLMConfig) -> WavLM:
    torch.manual_seed(0)
    model = WavLM(config)
    randomise(model)
    return model


@pytest.fixture(scope="module")
def mixed() -> tuple[WavLM, bytes]:
    model = wavlm(MIXED)
    return model, encoder_onnx_bytes(model)


def session_of(graph: bytes):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def batch_of(rows: int, samples: int, *, padded: bool) -> tuple[Tensor, Tensor]:
    """Noise with a mean of its own in each row, zero-padded from a random length on in all rows but the first."""
    generator = torch.Generator().manual_seed(rows * samples)
    waveforms = 0.1 * torch.randn(rows, samples, generator=generator) + 0.05 * torch.arange(rows).unsqueeze(-1)
    lengths = torch.full((rows,), samples)
    if padded:
        lengths[1:] = torch.randint(0, samples, (rows - 1,), generator=generator)
    return torch.where(torch.arange(samples) < lengths.unsqueeze(-1), waveforms, 0), lengths


@torch.no_grad()
def expected(model: WavLM, waveforms: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """Each output by its name, from the model's own forward pass, with its own backend and Toeplitz form."""
    if model.config.normalise_waveform:
        waveforms = normalise(waveforms, lengths)
    output = model(waveforms, lengths)
    states = {f"hidden_state_{layer}": state for layer, state in enumerate(output.hidden_states)}
    return {**states, "last_hidden_state": output.final, "num_frames": num_frames(lengths)}


def largest_error(model: WavLM, session, batch: tuple[Tensor, Tensor]) -> float:
    waveforms, lengths = batch
    wanted = expected(model, waveforms, lengths)
    assert [output.name for output in session.get_outputs()] == list(wanted)
    found = session.run(None, {"waveforms": waveforms.numpy(), "num_samples": lengths.numpy()})
    errors = []
    for (name, ours), theirs in zip(wanted.items(), map(torch.from_numpy, found), strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, name
        if name == "num_frames":
            assert torch.equal(ours, theirs)
        else:
            errors.append(float((ours - theirs).abs().max() / ours.square().mean().sqrt()))
    return max(errors)


def difference_from_the_row_alone(session) -> float:
    """Of the valid frames of a padded row, relative to their level."""
    waveforms, lengths = example_batch(16_000, 9_000)
    feed = {"waveforms": waveforms.numpy(), "num_samples": lengths.numpy()}
    alone = {"waveforms": waveforms[1:, :9_000].numpy(), "num_samples": lengths[1:].numpy()}
    (padded,), (row,) = (session.run(["last_hidden_state"], given) for given in (feed, alone))
    return float(np.abs(padded[1, : row.shape[1]] - row[0]).max() / np.sqrt(np.square(row).mean()))


def check(model: WavLM, graph: bytes) -> None:
    session = session_of(graph)
    for rows in range(1, 6):
        for samples in UNTRACED_SAMPLES:
            for padded in (False, True):
                error = largest_error(model, session, batch_of(rows, samples, padded=padded))
                assert error < TOLERANCE, (rows, samples, padded, error)  # NaN too
    # What README.md says of padding.
    assert difference_from_the_row_alone(session) < TOLERANCE or model.config.extractor_norm == "group"
    assert difference_from_the_row_alone(session) > 0.1 or model.config.extractor_norm == "layer"


def test_a_graph_has_the_models_outputs_at_batches_and_lengths_that_were_not_traced(mixed):
    check(*mixed)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize(
    "config",
    [TINY, TINY_LARGE, replace(TINY, feature_grad_mult=0.0, attention_backend="flex", attention_dropout=0.0, recompute="all")],
    ids=["Base", "Large", "Base, other settings of training"],
)
def test_the_graphs_of_published_architectures_have_their_outputs(config):
    model = wavlm(config)
    check(model, encoder_onnx_bytes(model))


FULL_LARGE = WavLMConfig(
    dim=1024, ffn_dim=4096, heads=16, layers=24, pre_norm=True, extractor_norm="layer", normalise_waveform=True
)


@pytest.mark.long
@pytest.mark.parametrize("config", [WavLMConfig(), FULL_LARGE], ids=["Base", "Large"])
def test_a_graph_of_full_size_has_the_models_outputs(config):
    model = wavlm(config)
    assert largest_error(model, session_of(encoder_onnx_bytes(model)), example_batch(48_000, 30_000)) < TOLERANCE


def test_a_row_without_a_valid_frame_is_finite_and_leaves_the_others_as_they_are(mixed):
    session = session_of(mixed[1])
    waveforms, lengths = batch_of(3, 4_000, padded=False)
    feed = {"waveforms": waveforms.numpy(), "num_samples": lengths.numpy()}
    (before,) = session.run(["last_hidden_state"], feed)
    # 81 to 399 samples: the quotient is negative and is rounded down, not towards 0.
    for short in (0, 80, 81, 399):
        states, frames = session.run(["last_hidden_state", "num_frames"], feed | {"num_samples": np.array([4_000, short, 4_000])})
        assert frames.tolist() == [12, 0, 12] and np.isfinite(states).all()
        assert np.array_equal(states[[0, 2]], before[[0, 2]])


def test_a_graph_names_its_axes_and_holds_no_trace_of_the_machine_that_wrote_it(mixed):
    _, content = mixed
    graph = onnx.load_model(io.BytesIO(content))
    onnx.checker.check_model(graph, full_check=True)
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.graph.input, *graph.graph.output)
    }
    assert axes["waveforms"] == ["batch", "samples"] and axes["num_samples"] == axes["num_frames"] == ["batch"]
    assert axes["hidden_state_0"] == axes["last_hidden_state"] == ["batch", "frames", MIXED.dim]
    assert not re.search(rb"\.py\b|site-packages|/tmp|/home|/root", content)


def test_the_readme_of_a_folder_runs_as_written(mixed, tmp_path, monkeypatch):
    model, graph = mixed
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "FOLDER" / "model.onnx").write_bytes(graph)
    text = readme("export-onnx", "onnx", updates=1, config=model.config)
    (snippet,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    found: dict = {}
    exec(compile(snippet, "README.md", "exec"), found)
    assert found["second"].shape == (62, MIXED.dim)
    assert "group norm" in text and "with or without `num_samples`" in text and "pass plain waveforms" in text
    large = readme("export-onnx", "onnx", updates=1, config=TINY_LARGE)
    assert "with `num_samples` a padded row has the features of the row alone" in large


def test_an_export_leaves_the_model_as_it_was(mixed):
    model, _ = mixed
    assert model.encoder.attention_backend == MIXED.attention_backend and model.encoder.spread_bias is toeplitz
    assert not any(part.training for part in model.modules())


# --- other modules ------------------------------------------------------------------------------------------------------


class Recogniser(nn.Module):
    """A convolution, a Transformer and a linear head; from an axis that is an input's own, torch itself refuses a frozen length."""

    def __init__(self, config: WavLMConfig):
        super().__init__()
        self.extractor = nn.Conv1d(1, config.dim, 4, stride=3)
        self.encoder = TransformerEncoder(config)
        self.head = nn.Linear(config.dim, 5)

    def forward(self, waveforms: Tensor) -> tuple[Tensor]:
        features = self.extractor(waveforms.unsqueeze(1)).transpose(1, 2)
        return (self.head(self.encoder(features)[-1]),)


@pytest.fixture
def recogniser() -> Recogniser:
    torch.manual_seed(0)
    module = Recogniser(replace(TINY, layers=1, dim=16, ffn_dim=16, heads=2, positional_kernel=4, positional_groups=2))
    randomise(module)
    return module.train()


def exported(module: nn.Module) -> bytes:
    waveforms = torch.randn(5, 120, generator=torch.Generator().manual_seed(3))
    return onnx_bytes(
        module,
        inputs={"waveforms": ("batch", "samples")},
        outputs={"logits": ("batch", "frames")},
        traced=[waveforms[:2]],
        compared=[waveforms[:, :93]],
    )


def test_a_module_with_an_encoder_inside_is_exported_quietly_in_evaluation_mode(recogniser, caplog, capfd):
    with caplog.at_level(logging.INFO):
        session = session_of(exported(recogniser))
    assert not caplog.records and capfd.readouterr() == ("", "")
    assert all(part.training for part in recogniser.modules()), "the mode is restored"
    waveforms = torch.randn(3, 230, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        (logits,) = recogniser.eval()(waveforms)
    (found,) = session.run(["logits"], {"waveforms": waveforms.numpy()})
    assert float((logits - torch.from_numpy(found)).abs().max() / logits.square().mean().sqrt()) < TOLERANCE


def test_a_graph_that_froze_the_traced_length_is_refused(recogniser, monkeypatch):
    monkeypatch.setattr(exporter, "toeplitz_by_gather", toeplitz)
    with pytest.raises(ValueError, match="must run at lengths that were not traced, but does not with torch"):
        exported(recogniser)


# --- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [("onnxscript",), ("onnx", "onnxscript")])
def test_without_its_packages_the_format_is_refused_before_anything_is_read(missing, monkeypatch, tmp_path):
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    sentence = f"format=onnx needs {' and '.join(missing)}, which .* not installed: pip install 'openwavlm\\[onnx\\]'"
    with pytest.raises(ValueError, match=sentence):
        export_run(tmp_path / "no run", format="onnx")
    with pytest.raises(ValueError, match=sentence):
        encoder_onnx_bytes(WavLM(TINY))
    assert not list(tmp_path.iterdir())


def test_a_model_that_no_file_can_hold_or_that_has_no_waveform_extractor_is_refused():
    with torch.device("meta"):
        large = WavLM(replace(TINY, ffn_dim=2**21))
    with pytest.raises(ValueError, match=r"holds at most 2 GiB, but this model's parameters take 3\.0 GiB"):
        encoder_onnx_bytes(large)
    with pytest.raises(ValueError, match=r"train with model\.front_end=conv"):
        encoder_onnx_bytes(WavLM(replace(TINY, front_end="logmel")))


def test_the_graphs_module_normalises_waveforms_only_where_the_model_expects_it():
    waveforms, lengths = batch_of(2, 4_000, padded=True)
    for config, changes in ((TINY, True), (replace(TINY, normalise_waveform=True), False)):
        graph = EncoderGraph(wavlm(config))
        with torch.no_grad():
            one, louder = (graph(factor * waveforms, lengths)[0] for factor in (1, 3))
        assert torch.allclose(one, louder, rtol=0, atol=1e-3) != changes


def test_a_graph_is_not_loaded_as_a_checkpoint(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"graph")
    for path in (tmp_path, tmp_path / "model.onnx"):
        with pytest.raises(ValueError, match=r"holds an ONNX graph, .*export the run with format=huggingface too"):
            openwavlm.load(path)

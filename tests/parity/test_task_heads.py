"""Fine-tuned heads in Transformers: every key is known, logits and texts are ours, and the usual five steps of use run."""

import importlib
import importlib.util
import json
import random
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from openwavlm.checkpoints.load import load_checkpoint
from openwavlm.downstream import export
from openwavlm.downstream.export import TaskGraph, export_task
from openwavlm.downstream.load import load_task_run
from openwavlm.downstream.model import merge_adapters
from openwavlm.downstream.symbols import read_symbols
from openwavlm.downstream.vocabulary import Vocabulary
from openwavlm.labels.teacher import model_hash
from openwavlm.model.wavlm import normalise
from tasks import FINETUNE, begin, make_encoder, make_task_shards
from torch_audio import torchaudio

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return make_task_shards(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def tuned(shards, tmp_path_factory) -> Callable[..., Path]:
    """Runs of four updates by their overrides and architecture; equal ones are trained once."""
    made: dict[object, Path] = {}

    def run(*overrides: str, **architecture: object) -> Path:
        key = (overrides, tuple(architecture.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("tuned")
            place = [f"init={make_encoder(folder / 'encoder', **architecture)}", f"data.sources.speech.shards={shards}"]
            short = ["optim.updates=4", "callbacks.checkpoint_every=4", "callbacks.validate_every=4", "data.validation_share=0.2"]
            begin([*FINETUNE, *place, *short, *overrides], folder / "run")
            made[key] = folder / "run"
        return made[key]

    return run


LARGE = {"pre_norm": True, "extractor_norm": "layer", "normalise_waveform": True}


@pytest.mark.filterwarnings("ignore")  # Transformers' own
@pytest.mark.parametrize(
    ("overrides", "architecture", "name"),
    [
        (["task=ctc"], {}, "WavLMForCTC"),
        (["task=ctc", "trained.encoder=lora", "trained.freeze_updates=0"], LARGE, "WavLMForCTC"),
        (["task=sid", "task.field=word"], {}, "WavLMForSequenceClassification"),
        (["task=sid"], LARGE, "WavLMForSequenceClassification"),
        (["task=sid", "trained.weighted_sum=false", "trained.encoder=top"], LARGE, "WavLMForSequenceClassification"),
    ],
    ids=["ctc", "ctc of a large model with adapters", "words", "all layers of a large model", "last layer of a large model"],
)
def test_a_fine_tuned_model_loads_with_its_head_and_gives_our_logits(tuned, tmp_path, overrides, architecture, name):
    run = tuned(*overrides, **architecture)
    folder = export_task(run, tmp_path / "exported")
    model, report = getattr(transformers, name).from_pretrained(str(folder), output_loading_info=True)
    assert not any(report.values()), report
    assert json.loads((folder / "config.json").read_text())["architectures"] == [name]
    ours = load_task_run(run, "best")
    generator = torch.Generator().manual_seed(1)
    waveforms = torch.randn(2, 9000, generator=generator) / 9
    prepared = waveforms
    if architecture:
        extractor = transformers.AutoFeatureExtractor.from_pretrained(str(folder))
        prepared = extractor(list(waveforms.numpy()), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        theirs = model.eval()(prepared).logits
        expected = ours.model(prepared, torch.tensor([9000, 9000])).logits
    assert float((theirs - expected).abs().max() / expected.std()) < 1e-5
    if "task=sid" in overrides:
        assert tuple(model.config.id2label[number] for number in range(len(ours.symbols))) == ours.symbols


@pytest.mark.filterwarnings("ignore")
def test_the_five_steps_of_use_run_on_a_ctc_folder(tuned, tmp_path):
    folder = str(export_task(tuned("task=ctc"), tmp_path / "exported"))
    model, processor = transformers.AutoModelForCTC.from_pretrained(folder), transformers.AutoProcessor.from_pretrained(folder)
    audio = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    inputs = processor(audio, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    text = processor.batch_decode(logits.argmax(-1))[0]
    recogniser = transformers.pipeline("automatic-speech-recognition", folder)
    assert recogniser(audio)["text"] == text
    labels = processor(text="abba cab").input_ids
    expected = torch.nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1),
        torch.tensor([labels]),
        torch.tensor([logits.shape[1]]),
        torch.tensor([len(labels)]),
        blank=0,
    )
    with torch.no_grad():
        assert float(model.eval()(**inputs, labels=torch.tensor([labels])).loss) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_the_five_steps_of_use_run_on_a_classification_folder(tuned, tmp_path):
    folder = str(export_task(tuned("task=sid"), tmp_path / "exported"))
    audio = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    found = transformers.pipeline("audio-classification", folder)(audio, top_k=5)
    assert {one["label"] for one in found} == {"s0", "s1", "s2", "s3", "s4"}


@pytest.mark.filterwarnings("ignore")
def test_greedy_texts_are_those_of_transformers_tokenizer(tuned, tmp_path):
    run = tuned("task=ctc")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(export_task(run, tmp_path / "exported")))
    ours = Vocabulary(load_task_run(run).symbols, phones=False)
    generator = random.Random(3)
    paths = [[generator.choice([0, 0, *range(len(ours))]) for _ in range(generator.randint(1, 60))] for _ in range(1000)]
    paths = [[0 if 1 <= number <= 3 else number for number in path] for path in paths]
    theirs = tokenizer.batch_decode(paths)
    assert [ours.greedy(path) for path in paths] == [" ".join(text.split()) for text in theirs]
    assert tokenizer("abba cab").input_ids == ours.encode("abba cab")


def test_what_transformers_has_no_class_for_is_refused(tuned, shards, tmp_path):
    with pytest.raises(ValueError, match="reads a weighted sum of all layers"):
        export_task(tuned("task=ctc", "trained.encoder=frozen", "trained.freeze_updates=0"), tmp_path / "exported")
    control = ["task=sid", "init=mfcc", f"data.sources.speech.shards={shards}", "trained.freeze_updates=0", "optim.updates=4"]
    begin([*FINETUNE, *control], tmp_path / "run")
    with pytest.raises(ValueError, match="but init is mfcc"):
        export_task(tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "architecture"), [(["task=ctc"], {}), (["task=sid"], LARGE)], ids=["ctc", "classes of a large model"]
)
def test_the_module_of_an_onnx_graph_has_the_logits_of_each_row_alone(tuned, tmp_path, monkeypatch, overrides, architecture):
    run = tuned(*overrides, **architecture)
    model = load_task_run(run).model
    lengths = torch.tensor([9_000, 4_001, 700])
    audio = 0.05 + torch.randn(3, 9_000, generator=torch.Generator().manual_seed(2)) / 9
    audio = torch.where(torch.arange(9_000) < lengths[:, None], audio, 0)
    with torch.no_grad():
        logits, frames = TaskGraph(model)(audio, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone = audio[row : row + 1, :length]
            if architecture:
                alone = torch.nn.functional.layer_norm(alone, alone.shape[-1:])
            expected = model(alone, lengths[row : row + 1]).logits[0]
            found = logits[row, : frames[row]] if "task=ctc" in overrides else logits[row]
            assert found.shape == expected.shape and float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(export, "task_onnx_bytes", lambda model: b"graph")  # the next test writes real ones
    folder = export_task(run, tmp_path / "exported", format="onnx", checkpoint="newest")
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "symbols.json", "README.md"}
    assert read_symbols(folder) == load_task_run(run).symbols


@pytest.mark.long  # ten seconds a trace; quick ones of an encoder, and of one with a head, are in test_onnx.py
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "overrides", [["task=ctc"], ["task=sid", "trained.encoder=lora", "trained.freeze_updates=0"]], ids=["ctc", "classes"]
)
def test_an_onnx_graph_has_the_logits_of_each_row_alone_at_sizes_that_were_not_traced(tuned, tmp_path, overrides):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run = tuned(*overrides)
    folder = export_task(run, tmp_path / "exported", format="onnx", checkpoint="newest")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    model, generator = load_task_run(run).model, torch.Generator().manual_seed(2)
    for rows, samples in ((1, 719), (2, 4_240), (3, 16_000), (4, 30_001), (5, 9_000)):
        lengths = torch.tensor([samples, *torch.randint(400, samples + 1, (rows - 1,), generator=generator).tolist()])
        audio = torch.randn(rows, samples, generator=generator) / 9 * (torch.arange(samples) < lengths[:, None])
        logits, frames = session.run(None, {"waveforms": audio.numpy(), "num_samples": lengths.numpy()})
        for row, length in enumerate(lengths.tolist()):
            with torch.no_grad():
                expected = model(audio[row : row + 1, :length], lengths[row : row + 1]).logits[0].numpy()
            found = logits[row, : frames[row]] if "task=ctc" in overrides else logits[row]
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() <= 1e-4 * max(1.0, float(np.abs(expected).max())), (rows, samples, row)


def loaded_by_torchaudio(folder: Path):
    """States by torchaudio's own code, with the file loaded strictly: the encoder's input and each layer's output, and the final one."""
    make = torchaudio().models.wavlm_model
    arguments = json.loads((folder / "model.json").read_text())
    reference = make(**{name: arguments[name] for name in make.__code__.co_varnames[: make.__code__.co_argcount]})
    reference.load_state_dict(torch.load(folder / "model.pt", weights_only=True), strict=True)
    first = []
    reference.encoder.transformer.layers[0].register_forward_pre_hook(lambda module, inputs: first.append(inputs[0]))

    def states(waveforms):
        final, _ = reference(waveforms)
        layers, _ = reference.extract_features(waveforms)
        return [first[0], *layers], final

    reference.eval()
    return states


def loaded_by_microsoft(folder: Path):
    """The same by Microsoft's code."""
    upstream = importlib.util.find_spec("s3prl")
    if upstream is None or not upstream.submodule_search_locations:
        pytest.skip("s3prl, which has Microsoft's code, is not installed: make setup does it")
    package = types.ModuleType("microsofts")
    package.__path__ = [str(Path(upstream.submodule_search_locations[0]) / "upstream" / "wavlm")]
    sys.modules["microsofts"] = package
    theirs = importlib.import_module("microsofts.WavLM")
    content = torch.load(folder / "model.pt", weights_only=True)
    reference = theirs.WavLM(theirs.WavLMConfig(content["cfg"])).eval()
    assert reference.load_state_dict(content["model"], strict=True) == ([], [])

    def states(waveforms):
        (_, layers), _ = reference.extract_features(waveforms, output_layer=len(reference.encoder.layers), ret_layer_results=True)
        return [state.transpose(0, 1) for state, _ in layers], reference.extract_features(waveforms)[0]

    return states


@pytest.mark.parametrize("load", [loaded_by_torchaudio, loaded_by_microsoft], ids=["torchaudio", "microsoft"])
@pytest.mark.parametrize(
    ("overrides", "architecture"),
    [(["task=ctc", "trained.encoder=lora", "trained.freeze_updates=0"], LARGE), (["task=sid", "task.field=word"], {})],
    ids=["ctc of a large model with adapters", "words"],
)
def test_an_exported_encoder_has_our_states_in_its_library_and_with_its_head_our_logits(
    tuned, overrides, architecture, load, tmp_path
):
    run = tuned(*overrides, **architecture)
    format = load.__name__.removeprefix("loaded_by_")
    folder = export_task(run, tmp_path / "exported", format=format, checkpoint="newest")
    states = load(folder)
    model = load_task_run(run).model
    waveforms, num_samples = torch.randn(2, 9000, generator=torch.Generator().manual_seed(1)) / 9, torch.tensor([9000, 9000])
    if model.wavlm.config.normalise_waveform:
        waveforms = normalise(waveforms, num_samples)
    with torch.no_grad():
        layers, final = states(waveforms)
        encoded, logits = model.wavlm(waveforms, num_samples), model(waveforms, num_samples).logits
    assert len(layers) == len(encoded.hidden_states) == 3
    for found, expected in zip([*layers, final], [*encoded.hidden_states, encoded.final], strict=True):
        assert float((found - expected).abs().max() / expected.square().mean().sqrt()) < 1e-5
    head = load_file(folder / "head.safetensors")
    if "task=ctc" in overrides:
        found = final @ head["lm_head.weight"].T + head["lm_head.bias"]
    else:
        summed = (head["layer_weights"].softmax(0)[:, None, None, None] * torch.stack(layers)).sum(0)
        pooled = (summed @ head["projector.weight"].T + head["projector.bias"]).mean(1)
        found = pooled @ head["classifier.weight"].T + head["classifier.bias"]
    assert float((found - logits).abs().max() / logits.std()) < 1e-5
    assert read_symbols(folder) == load_task_run(run).symbols
    again, account = load_checkpoint(folder)
    assert not account.created and not account.ignored and model_hash(again) == model_hash(merged(model))
    tensors = {"model.pt", "head.safetensors"} | ({"model.json"} if format == "torchaudio" else set())
    assert set(json.loads((folder / "openwavlm.json").read_text())["files"]) == tensors
    page = (folder / "README.md").read_text()
    assert "## Head" in page and ("weighted by `layer_weights.softmax(0)`" in page) == ("task=sid" in overrides)
    with pytest.raises(ValueError, match=rf"one folder holds one format, but .* holds {format} and format is huggingface"):
        export_task(run, folder, checkpoint="newest")


def merged(model):
    merge_adapters(model.wavlm)
    return model.wavlm


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="format must be one of huggingface, microsoft, torchaudio, s3prl, onnx, but is 'tflite'"
    ):
        export_task(tmp_path, format="tflite")

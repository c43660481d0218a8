"""What only a GPU can show: `pytest -m gpu`. `benchmarks/gpu.py` measures the same at full size."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openwavlm.model.config import Head
from openwavlm.model.pretraining import WavLMForPretraining
from openwavlm.model.wavlm import WavLM
from openwavlm.planning.trial import synthetic_batch
from openwavlm.training.forward import seed_dropout
from programs import REPOSITORY
from random_models import TINY, TINY_LARGE, randomise
from synthetic import make_shard_set

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from gpu_parts import parity, watch
from gpu_parts.setting import Setting

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "input_dropout": 0.0}


@pytest.fixture(autouse=True)
def without_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex"])
@pytest.mark.parametrize("config", [TINY, TINY_LARGE], ids=["base", "large"])
def test_hidden_states_and_gradients_of_a_gpu_are_those_of_eager_attention_on_a_cpu(config, backend, compiled):
    torch.manual_seed(0)
    config = replace(config, **NO_DROPOUT)
    reference = randomise(
        WavLMForPretraining(WavLM(replace(config, attention_backend="eager")), Head(final_dim=16), num_classes=20)
    )
    other = WavLMForPretraining(WavLM(replace(config, attention_backend=backend)), Head(final_dim=16), num_classes=20).eval()
    other.load_state_dict(reference.state_dict())
    if compiled:
        other.wavlm.compile_layers()
    inputs = parity.make_inputs(1.0, 20)  # with padded rows, one of them without a valid frame
    found = parity.compared(parity.run(other.cuda(), inputs.to("cuda")), parity.run(reference, inputs))
    torch._dynamo.reset()
    assert found["gradients_compared"] == sum(".key.bias" not in name for name, _ in reference.named_parameters())
    assert found["largest_of_hidden_states"] < 1e-4 and found["largest_of_gradients"] < 1e-3, found


def test_dropout_on_a_gpu_depends_on_the_micro_batch_alone():
    overrides = Setting(Path("/nowhere"), "cuda", "toy", 1, 60.0).training("wavlm_base")
    batch = synthetic_batch(watch.recipe(overrides, 20))
    device, ones = torch.device("cuda", torch.cuda.current_device()), torch.ones(10_000, device="cuda")

    def dropped(micro: int) -> torch.Tensor:
        seed_dropout(device, 3, replace(batch, id=replace(batch.id, index=micro)))
        return torch.nn.functional.dropout(ones, 0.5)

    first = dropped(0)
    torch.rand(777, device="cuda")
    assert torch.equal(dropped(0), first) and not torch.equal(dropped(1), first)


@pytest.mark.filterwarnings("ignore")
def test_an_update_waits_for_the_gpu_only_to_read_the_figures_of_the_update_before(tmp_path):
    from openwavlm.labels.assign import assign_labels
    from openwavlm.labels.fit import fit_codebook

    setting = Setting(tmp_path, "cuda", "toy", 2, 60.0)
    for name in ("speech", "noise"):
        make_shard_set(setting.data / name, speakers=4, utterances=4, seconds=(1.0, 4.0))
    shards, codebook = setting.data / "speech" / "shard-set", setting.data / "codebook"
    fit_codebook([shards], codebook, clusters=20, min_frames_per_cluster=20, validation_share=0.0, device="cpu")
    assign_labels(shards, codebook, setting.data / "labels")
    overrides = setting.training("wavlm_base", "precision=bf16-mixed", "health.enabled=false")
    watched = watch.Watch(watch.recipe(overrides, 20), "cuda", 0.2, counted=3)
    watch.train(overrides, tmp_path / "run", watched)
    synchronisations = watched.figures()["synchronisations"]
    # `flush` copies the sums to the host, and reads the norm for the record and for the count of skipped updates.
    assert synchronisations["an_update"] <= 3, synchronisations
    assert {place.split(":")[0] for place in synchronisations["places"]} <= {"module.py"}, synchronisations

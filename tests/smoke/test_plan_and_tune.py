"""`openwavlm plan` and `openwavlm tune`: cost of a run, and the fastest settings of a machine."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from openwavlm.planning.budget import GIB, GPUS, USABLE_SHARE, Recipe, disk_bytes
from openwavlm.planning.plan import Question, lines_of, plan_run
from openwavlm.planning.trial import outcome_of, run_trial
from openwavlm.planning.tune import Search, search, speed_line, write_settings
from openwavlm.runs.announce import cost_lines
from openwavlm.runs.compose import composed, conf_dir, plain
from openwavlm.training.config import RunConfig, with_placeholders
from openwavlm.training.settings import Schedules
from programs import run_program
from runs import TINY_MODEL
from synthetic import make_shard_set

TINY = [
    "experiment=wavlm_nano",
    *TINY_MODEL,
    "batch.seconds=8",
    "batch.micro_seconds=4",
    "batch.max_seconds=2",
    "optim.updates=4",
    "optim.warmup_updates=0",
]


def values_of(*overrides: str) -> dict[str, Any]:
    return with_placeholders(plain(composed("train", ["name=x", *overrides])))


def recipe(*overrides: str) -> Recipe:
    values = values_of(*overrides)
    return Recipe(RunConfig.of(values), (500,))


def question(**changes: object) -> Question:
    keys = {"hours": 960.0, "classes": 500, "gpus": 1, "gpu": "h100", "gpu_memory_gib": None}
    return Question(**{**keys, "utilisation": 0.3, "flac_share": 0.51, "json": None, **changes})  # type: ignore[arg-type]


# --- plan ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("plan")
    outcome = run_program(
        folder, "openwavlm", "plan", "hours=960", "gpus=3", "optim.updates=32001", "utilisation=0.3", "json=a/plan.json"
    )
    assert outcome.status == 0, outcome
    return folder, outcome.stdout


def test_a_plan_needs_no_data_and_leaves_nothing_but_its_file(planned):
    folder, _ = planned
    assert {path.name for path in folder.iterdir()} == {"stdout.txt", "stderr.txt", "a"}
    assert [path.name for path in (folder / "a").iterdir()] == ["plan.json"]


def test_a_plan_prints_what_its_file_says_and_every_assumption(planned):
    folder, printed = planned
    figures = json.loads((folder / "a" / "plan.json").read_text())
    assert printed == "\n".join(lines_of(figures)) + "\n"
    assert all(f"  - {assumption}" in printed for assumption in figures["assumptions"]) and len(figures["assumptions"]) == 8
    assert "model: 94.71 M parameters" in printed and "h100: 66.9 TFLOP/s at precision=32-true (NVIDIA H100 datasheet" in printed


def test_a_plan_of_wavlm_base_has_the_figures_that_its_architecture_gives(planned):
    figures = json.loads((planned[0] / "a" / "plan.json").read_text())
    # The encoder of the released Base model, and a head of 500 classes: projection with bias and embeddings of 256.
    assert figures["parameters"]["total"] == 94_381_936 + (768 + 1) * 256 + 500 * 256
    # A row of 15.625 s has 1 + (250000 - 400) // 320 = 781 frames; 175 s have 8749, so 11 such rows.
    update, rows, frames = figures["update"], 11, 781
    assert (update["rows"], update["row_seconds"], update["micro_batches"], update["audio_seconds"]) == (rows, 15.625, 16, 2800)
    assert update["predicted_share"] == pytest.approx(0.5665, abs=0.03)
    predicted = round(update["predicted_share"] * rows * frames)
    convolutions, channels = [], 1
    for length, kernel in ((49_999, 10), (24_999, 3), (12_499, 3), (6_249, 3), (3_124, 3), (1_562, 2), (781, 2)):
        convolutions.append(2 * rows * length * kernel * channels * 512)
        channels = 512
    forward = {
        "extractor": sum(convolutions),
        "projection": 2 * rows * frames * 512 * 768,
        "positional": 2 * rows * (frames + 1) * 128 * 768 * 768 // 16,
        "attention": 12 * 2 * rows * frames * (4 * 768 * 768 + 2 * 768),  # four maps; two gates from the 64 values of each head
        "scores": 12 * 2 * rows * 2 * frames * frames * 768,
        "feed_forward": 12 * 2 * rows * frames * 2 * 768 * 3072,
        "head": 2 * predicted * (768 * 256 + 256 * 500),
    }
    flops, taken, updates = figures["flops"], figures["time"], 32_001
    assert flops["forward"] == forward and flops["recomputed"] == 0
    assert flops["backward"] == {part: 2 * n - (part == "extractor") * convolutions[0] for part, n in forward.items()}
    a_second = (3 * sum(forward.values()) - convolutions[0]) / (rows * 15.625)
    assert flops["a_second_of_audio"] == pytest.approx(a_second, rel=1e-12)
    assert flops["an_update"] == pytest.approx(2800 * a_second) and flops["run"] == pytest.approx(updates * 2800 * a_second)
    # 16 micro-batches on 3 GPUs: six rounds, so that 2 of 18 are padding; 66.9e12 operations a second in float32, 0.3 of them used.
    assert taken["peak_flops_a_second"] == pytest.approx(66.9e12)
    seconds = 6 * 175 * a_second / (0.3 * 66.9e12)
    assert taken["seconds_an_update"] == pytest.approx(seconds) and taken["wasted_share"] == pytest.approx(2 / 18)
    assert taken["gpu_hours"] == pytest.approx(3 * updates * seconds / 3600) and taken["days"] == pytest.approx(
        updates * seconds / 86400
    )
    assert figures["run"]["hours"] == pytest.approx(updates * 2800 / 3600)
    assert figures["run"]["passes"] == pytest.approx(updates * 2800 / 3600 / 960)
    disk = figures["disk_bytes"]
    assert disk["labels"] == 960 * 3600 * 50 * 2 and disk["shards"] == pytest.approx(960 * 3600 * 16_000 * 2 * 0.51)
    assert disk["checkpoints"] % (12 * figures["parameters"]["total"]) == 0


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml")))
def test_every_experiment_can_be_planned(experiment):
    made = recipe(f"experiment={experiment}")
    planned = plan_run(made, question(gpus=made.config.batch.slots), 4)
    assert planned["parameters"]["total"] > 1_000_000 and planned["memory_bytes"]["fits"]


def test_a_run_on_94000_hours_can_be_planned():
    large = ["model=large", "batch.seconds=14400", "batch.micro_seconds=225", "precision=bf16-mixed"]
    figures = plan_run(recipe(*large), question(hours=94_000.0, gpus=64), 4)
    assert figures["disk_bytes"]["labels"] == pytest.approx(33.84e9) and figures["disk_bytes"]["shards"] == pytest.approx(
        5.5e12, rel=0.01
    )
    assert figures["time"]["wasted_share"] == 0 and figures["parameters"]["total"] == pytest.approx(316.6e6, rel=1e-3)


def test_a_preset_is_planned_on_the_corpus_that_it_was_published_with_unless_hours_are_given(tmp_path):
    printed = [run_program(tmp_path, "openwavlm", "plan", "experiment=wavlm_large", *more) for more in ([], ["hours=960"])]
    assert "passes over 94,000 h" in printed[0].stdout and "passes over 960 h" in printed[1].stdout
    assert question(hours=None).of("wavlm_base").hours == 960


def test_every_checkpoint_that_is_kept_takes_disk():
    schedules = RunConfig.of(values_of("experiment=wavlm_large")).callbacks
    assert schedules.kept_of(700_000) == 3 + 700_000 // schedules.keep_every + 1
    assert Schedules(checkpoint_every=10).kept_of(15) == 2 + 1
    assert disk_bytes(1, 0.5, 100, 3)["checkpoints"] == 3600 and disk_bytes(1, 0.5, 100, 3, ema=True)["checkpoints"] == 4800


def test_shards_take_less_memory_than_copies_and_a_running_mean_takes_its_own():
    base = ["model=base", "batch.seconds=2880", "batch.micro_seconds=180"]
    copied, sharded, mean = (recipe(*base, *more) for more in ([], ["trainer.strategy=fsdp"], ["optim.ema=0.999"]))
    parameters = plan_run(copied, question(), 4)["parameters"]["total"]
    states = [one.memory(8).states for one in (copied, sharded, mean)]
    assert states[1]["moments"] == -(-8 * parameters // 8) and states[0]["moments"] == 8 * parameters
    assert sum(states[1].values()) < sum(states[0].values()) / 2
    assert sum(states[2].values()) - sum(states[0].values()) == 4 * parameters


@pytest.mark.parametrize("gpus", [1, 3])
def test_the_micro_batch_that_is_proposed_fits_and_a_larger_one_does_not(gpus):
    base = recipe("model=base", "batch.seconds=2880", "batch.micro_seconds=180")
    figures = plan_run(base, question(gpus=gpus, gpu="l40s"), 4)["memory_bytes"]
    slots, usable = figures["fitting_micro_batches"], USABLE_SHARE * 48 * GIB
    assert slots % gpus == 0 and figures["fitting_micro_seconds"] == pytest.approx(2880 / slots)
    assert base.with_slots(slots).memory(gpus).total <= usable
    assert slots == gpus or base.with_slots(slots - gpus).memory(gpus).total > usable


def test_what_fits_into_no_gpu_is_said():
    figures = plan_run(recipe("batch.max_seconds=175"), question(gpu_memory_gib=4), 4)
    assert not figures["memory_bytes"]["fits"] and figures["memory_bytes"]["fitting_micro_batches"] is None
    assert any("lower batch.max_seconds" in line for line in lines_of(figures))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["gpuss=3"], "gpuss is not a known key; did you mean gpus?"),
        (["gpu=b17"], "gpu must be one of h100, h200, a100, v100, l40s, but is b17"),
        (
            ["gpus=64"],
            "64 GPUs, but an update of 2800 s has only 16 micro-batches of 175 s: use at most gpus=16, or batch.micro_sec",
        ),
        (
            ["gpus=1000"],
            "1000 GPUs, but an update of 2800 s has only 16 micro-batches of 175 s: use at most gpus=16, or a larger",
        ),
        (["gpus=0"], "hours, classes, gpus, gpu_memory_gib and flac_share must be positive"),
        (["gpu=v100", "precision=bf16-mixed"], "the matrix units of this GPU have no bfloat16"),
        (["utilisation=30"], "utilisation must lie in (0, 1], but is 30"),
        (["+optim.lrr=1"], "optim.lrr is not a known key"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(tmp_path, arguments, sentence):
    assert run_program(tmp_path, "openwavlm", "plan", *arguments).error().startswith(sentence)


def test_the_gpus_have_the_figures_of_their_datasheets():
    """GiB, dense 16-bit and plain float32 TFLOP/s; a V100 has no bfloat16."""
    assert {name: (gpu.memory_gib, gpu.tflops_16_bit, gpu.tflops_32_bit, gpu.bfloat16) for name, gpu in GPUS.items()} == {
        "h100": (80, 989.4, 66.9, True),
        "h200": (141, 989.4, 66.9, True),
        "a100": (80, 312, 19.5, True),
        "v100": (32, 125, 15.7, False),
        "l40s": (48, 362.05, 91.6, True),
    }
    assert all(gpu.source.startswith("NVIDIA") for gpu in GPUS.values())


@pytest.mark.parametrize("name", ["plan", "tune"])
def test_the_help_shows_the_command_line_and_the_keys_of_both(tmp_path, name):
    outcome = run_program(tmp_path, "openwavlm", name, "--help")
    assert outcome.status == 0 and f"openwavlm {name} experiment=wavlm_nano" in outcome.stdout
    assert "optim.warmup_updates=32000" in outcome.stdout and "classes: 500" in outcome.stdout


# --- the start of a run ---------------------------------------------------------------------------------------------------


def test_the_start_of_a_run_says_how_its_slots_are_shared():
    two, four = recipe(*TINY), recipe(*TINY, "batch.seconds=16")
    update, step = cost_lines(two, 2)
    assert update.startswith("update: 8 s of audio, ") and "GiB a process (an estimate)" in update
    assert step == "step: the 2-slot recipe on your 2 process(es): 1 micro-batches of 4 s each, same losses"
    waste = cost_lines(four, 3)[-1]
    assert waste == "2 padding micro-batch(es) a step: 33% of the work is waste; a divisor of 4 avoids it"


def test_a_launch_says_how_its_slots_are_shared_even_if_its_costs_cannot_be_counted(monkeypatch, caplog):
    def fail(*arguments: object, **settings: object) -> None:
        raise RuntimeError("an operator without a meta kernel")

    monkeypatch.setattr("openwavlm.planning.budget.count_costs", fail)
    update, step = cost_lines(recipe(*TINY), 1)
    assert update == "update: 8 s of audio" and step.startswith("step: the 2-slot recipe on your 1 process(es)")
    assert "cannot be estimated: RuntimeError: an operator without a meta kernel" in caplog.text


# --- tune ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    shards = make_shard_set(folder, speakers=6, utterances=4, seconds=(1.0, 3.0))
    fit_codebook([shards], folder / "codebook", clusters=10, engine="minibatch", min_frames_per_cluster=20, validation_share=0.3)
    assign_labels(shards, folder / "codebook", folder / "labels")
    return [
        f"data.sources.speech.shards={shards}",
        f"data.sources.speech.labels={folder / 'labels'}",
        "data.validation_share=0.3",
    ]


def test_a_machine_is_tuned_and_its_settings_are_those_of_a_new_run(data, tmp_path):
    arguments = [*TINY, *data, "trainer.threads=1", "loader.workers=1", "seconds=0.05"]
    outcome = run_program(tmp_path, "openwavlm", "tune", *arguments)
    assert outcome.status == 0, outcome
    found = json.loads((tmp_path / "tuned" / "tune.json").read_text())
    tried = [(row["knob"], row["value"]) for row in found["trials"]]
    assert tried[:2] == [("as given", None), ("model.attention_backend", "sdpa")]
    assert ("loader.workers", 0) in tried and ("loader.workers", 1) in tried
    assert all(row["audio_seconds_a_second"] > 0 and row["peak_memory_bytes"] > 0 for row in found["trials"])
    assert outcome.stderr.count("s of audio a second") == len(found["trials"]), "each trial is a line of the table"
    assert [row["with_data"] for row in found["trials"]] == [knob == "loader.workers" for knob, _ in tried]

    content = yaml.safe_load((tmp_path / "tuned" / "machine" / "tuned.yaml").read_text())
    assert {f"{group}.{key}": value for group, keys in content.items() for key, value in keys.items()} == found["chosen"]
    write_settings(tmp_path / "tuned", {"loader.workers": 2, "trainer.threads": 1, "model.attention_backend": "sdpa"}, "test")
    command = ["train.py", "--config-dir=tuned", "+machine=tuned", "name=new", *TINY, *data]
    outcome = run_program(tmp_path, *command)
    assert outcome.status == 0, outcome
    config = yaml.safe_load((tmp_path / "runs" / "new" / "config.yaml").read_text())
    assert (config["loader"]["workers"], config["trainer"]["threads"], config["model"]["attention_backend"]) == (2, 1, "sdpa")
    assert config["model"]["heads"] == 2, "what was not tuned is as given"


class Machine:
    """Trials of a made-up machine: speed as a function of the settings; nothing beyond `largest` seconds a micro-batch fits.

    With data it is no faster than `reading`, another function of the settings.
    """

    def __init__(self, speed, largest: float = float("inf"), reading=lambda values: float("inf")) -> None:
        self.speed, self.largest, self.reading = speed, largest, reading

    def __call__(self, values: dict[str, Any], with_data: bool) -> dict[str, Any]:
        if values["batch"]["micro_seconds"] > self.largest:
            return {"failed": "out of memory"}
        speed = min(self.speed(values), self.reading(values)) if with_data else self.speed(values)
        return {"audio_seconds_a_second": speed, "wait_share": 0.1, "peak_memory_bytes": 1e9}


def tuned(machine: Machine, *overrides: str, **settings: Any) -> Search:
    found = Search(values_of(*overrides), machine, margin=0.03)
    search(found, **{"on_gpu": True, "with_data": False, "cores": 4, **settings})
    return found


def test_micro_batches_grow_on_a_gpu_until_one_does_not_fit():
    found = tuned(Machine(lambda values: values["batch"]["micro_seconds"] ** 0.5, largest=800))
    sizes = [row["value"] for row in found.rows if row["knob"] == "batch.micro_seconds"]
    assert sizes == [350, 700, 1400] and found.rows[-1]["failed"] == "out of memory"
    assert found.chosen == {"batch.micro_seconds": 700}
    found = tuned(Machine(lambda values: values["batch"]["micro_seconds"] ** 0.5), "batch.seconds=1400")
    assert [row["value"] for row in found.rows if row["knob"] == "batch.micro_seconds"] == [350, 700, 1400], "up to a single one"


def test_micro_batches_shrink_on_a_gpu_until_one_fits():
    found = tuned(Machine(lambda values: 1.0, largest=50))
    sizes = [row["value"] for row in found.rows if row["knob"] == "batch.micro_seconds"]
    assert sizes == [87.5, 43.75] and found.chosen == {"batch.micro_seconds": 43.75}


def test_the_smallest_micro_batch_is_one_longest_row():
    sizes = ["batch.seconds=40", "batch.micro_seconds=20", "batch.max_seconds=5"]
    found = tuned(Machine(lambda values: 1.0, largest=5), *sizes)
    assert [row["value"] for row in found.rows if row["knob"] == "batch.micro_seconds"] == [10, 5]
    assert found.chosen == {"batch.micro_seconds": 5}
    smaller = Search(values_of(*sizes), Machine(lambda values: 1.0, largest=4.9), margin=0.03)
    with pytest.raises(ValueError, match="no trial ran to its end"):
        search(smaller, on_gpu=True, with_data=False, cores=4)
    assert [row["value"] for row in smaller.rows if row["knob"] == "batch.micro_seconds"] == [10, 5]


@pytest.mark.parametrize("scale", [0.2, 1.0, 300.0])
def test_a_setting_is_taken_only_if_it_is_faster_by_the_margin(scale):
    for gain, expected in ((1.02, {}), (1.05, {"model.attention_backend": "eager"})):
        found = tuned(
            Machine(
                lambda values, gain=gain: scale * (gain if values["model"]["attention_backend"] == "eager" else 1.0), largest=175
            )
        )
        assert found.chosen == expected


def test_workers_are_compared_with_the_given_number_of_them_with_data_and_not_with_trials_without():
    rates = {0: 1.0, 1: 2.0, 2: 3.0, 4: 5.0}
    machine = Machine(lambda values: 10.0, reading=lambda values: rates[values["loader"]["workers"]])
    found = tuned(machine, "loader.workers=2", on_gpu=False, with_data=True)
    assert found.chosen == {"loader.workers": 4} and found.rate == 5.0


def test_flex_is_tried_only_where_attention_weights_are_not_dropped():
    for model, expected in (("base", []), ("large", ["flex"])):
        found = tuned(Machine(lambda values: 1.0), f"model={model}")
        assert [row["value"] for row in found.rows if row["value"] == "flex"] == expected
    found = tuned(Machine(lambda values: 1.0), "model=large", on_gpu=False)
    assert not [row for row in found.rows if row["value"] == "flex"], "on a CPU it materialises everything"


def test_every_trial_keeps_what_was_chosen_before_it():
    seen = []

    def speed(values: dict[str, Any]) -> float:
        model, batch = values["model"], values["batch"]
        seen.append((model["attention_backend"], model["compile_layers"], batch["micro_seconds"]))
        return (1 + (model["attention_backend"] == "eager")) * (1 + model["compile_layers"])

    found = tuned(Machine(speed), "batch.seconds=350")
    assert seen == [("auto", False, 175), ("eager", False, 175), ("eager", True, 175), ("eager", True, 350)]
    assert found.chosen == {"model.attention_backend": "eager", "model.compile_layers": True} and found.rate == 4


def test_the_other_way_of_running_layers_is_tried_whichever_was_given():
    for given, other in (("true", False), ("false", True)):
        found = tuned(
            Machine(lambda values, other=other: 1 + (values["model"]["compile_layers"] is other)), f"model.compile_layers={given}"
        )
        assert found.chosen == {"model.compile_layers": other}


@pytest.mark.parametrize(
    ("given", "cores", "tried"),
    [("null", 4, [1, 2]), ("2", 4, [1, 4]), ("null", 6, [1, 2, 4]), ("2", 6, [1, 4, 6]), ("null", 1, [])],
)
def test_threads_are_powers_of_two_and_all_cores_but_those_that_were_given(given, cores, tried):
    found = tuned(Machine(lambda values: 1.0), f"trainer.threads={given}", on_gpu=False, cores=cores)
    assert [row["value"] for row in found.rows if row["knob"] == "trainer.threads"] == tried


def test_each_knob_is_tried_in_the_light_of_those_before_it():
    def speed(values: dict[str, Any]) -> float:
        threads, workers = values["trainer"]["threads"] or 4, values["loader"]["workers"]
        return (5 - threads) + (workers == 4)  # one thread and four workers

    found = tuned(Machine(speed), on_gpu=False, with_data=True)
    assert found.chosen == {"trainer.threads": 1, "loader.workers": 4}
    assert [row["value"] for row in found.rows if row["knob"] == "loader.workers"] == [2, 0, 1, 4]
    assert not [row for row in found.rows if row["knob"] == "batch.micro_seconds"], "on a CPU memory is not the question"


def test_a_machine_on_which_nothing_runs_is_told():
    with pytest.raises(ValueError, match="no trial ran to its end; the first: out of memory"):
        tuned(Machine(lambda values: 1.0, largest=0))


def test_a_trial_that_dies_is_a_row():
    huge = values_of(*TINY, "batch.seconds=1e13", "batch.micro_seconds=1e13")
    assert run_trial(huge, (10,), 0.1, 60, with_data=False) == {"failed": "out of memory"}
    tiny = values_of(*TINY, "trainer.threads=1")
    assert run_trial(tiny, (10,), 60.0, 0.2, with_data=False) == {"failed": "took longer than timeout=0.2 s"}
    context = multiprocessing.get_context("fork")
    for target, reason in (
        (_die, "killed by signal 9, possibly out of memory: lower batch.micro_seconds or loader.workers"),
        (_leave, "ended with status 3"),
    ):
        process = context.Process(target=target)
        process.start()
        assert outcome_of(process, Path("nowhere"), 10) == {"failed": reason}


def test_the_speed_of_a_gpu_is_the_utilisation_that_plan_asks_for():
    line = speed_line(98.94e12, "NVIDIA H100 80GB HBM3", "bf16-mixed")
    assert line.endswith("0.10 of the peak: openwavlm plan gpu=h100 utilisation=0.10")
    for unknown in (None, "Quadro"):
        assert speed_line(1e9, unknown, "32-true") == "the fastest trial does 1e+09 operations a second"


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(10)


def _leave() -> None:
    os._exit(3)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["seconds=0"], "classes, seconds and timeout must be positive"),
        (["margin=3"], "margin must lie in [0, 1), but is 3"),
        (["batch.seconds=100"], "batch.seconds must be a multiple of batch.micro_seconds"),
        (["data.sources.speech.shards=nowhere"], "data.sources.speech.labels must name a folder"),
        (["data.sources.speech.shards=nowhere", "data.sources.speech.labels=x"], "nowhere"),
        (["secons=3"], "secons is not a known key; did you mean seconds?"),
    ],
)
def test_what_cannot_be_tuned_is_refused(tmp_path, arguments, sentence):
    assert run_program(tmp_path, "openwavlm", "tune", *arguments).error().startswith(sentence)

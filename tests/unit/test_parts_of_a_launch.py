"""A launch gives each of its parts what the config, the data and the checkpoint say: the parts are recorders, the training is none."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from openwavlm.batches.plan import PLAN_VERSION
from openwavlm.runs import assemble, beginning, trainer
from openwavlm.runs import launch as train
from openwavlm.runs.compose import plain
from openwavlm.training.checkpoint import AtomicCheckpointIO
from openwavlm.training.config import RunConfig
from openwavlm.training.log_file import log_file
from openwavlm.training.settings import TrainerSettings
from openwavlm.training.sharding import ShardedStrategy
from openwavlm.training.sums import SUMS, StepRecord
from runs import TINY_MODEL, compose

DATA = ["data.sources.speech.shards=here", "data.sources.speech.labels=there"]
SETTINGS = [
    *("experiment=wavlm_nano", "name=test", "seed=11", *TINY_MODEL, *DATA, "optim.updates=20", "optim.warmup_updates=0"),
    *("loss.feature_penalty=3", "loss.targets=[3,1]", "data.max_skip_rate=0.02", "callbacks.unmasked_every=4"),
    *("probes.every=5", "probes.train=a", "probes.dev=b", "probes.alignments=c"),
    *("batch.seconds=12", "batch.micro_seconds=4", "batch.max_seconds=2", "model.head.special_rows=4", "stop_after=18"),
]
CLASSES = (10, 7)


class Launch:
    """One call of `run_launch` whose parts record what they are given.

    Attributes:
        given: Name of a part → its positional and named arguments.
        said: Calls in their order.
    """

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self._patch = directory, monkeypatch
        self.given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.said: list[Any] = []
        self.initial_seed = 0
        self.checkpoint: Path | None = None
        self.held_out = ["spec"]
        self.module = SimpleNamespace(skipped=SimpleNamespace(count=0))
        self.fingerprints = {"index.speech": "i", "codebook": "c"}
        self.replace("newest_checkpoint", lambda folder: self.checkpoint)
        self.replace("RunRecord", self._record)
        self.replace("open_data", lambda config, validation_share: self._opened(config.seed, validation_share))
        self.replace("make_model", self._model)
        for name, result in {
            "announce": None,
            "open_trackers": [],
            "make_figures": "figures of health",
            "RunLog": SimpleNamespace(
                close=lambda: self.said.append("log closed"),
                update=self._saying("log"),
                probes=lambda *figures: self.said.append(figures),
                audio_s_total=7.25,
                tables=SimpleNamespace(damaged=[], record=lambda launch, run: {"launch": launch, "run": run}),
            ),
            "make_monitor": SimpleNamespace(state=lambda: "the rules' state", update=self._saying("rules"), summary=dict),
            "StepLoader": SimpleNamespace(waited_s=0.0),
            "TrainingModule": self.module,
            "Evaluation": "evaluation",
            "StepBoundary": SimpleNamespace(requeue=True),
            "make_trainer": SimpleNamespace(fit=self._fit, global_step=18),
            "_begin_from": None,
            "check_head": None,
            "begin_branch": {"optim.lr": (1, 2)},
            "LiveProbe": SimpleNamespace(run=lambda encoder: [encoder, 0.5], baselines=lambda encoder: {"of": encoder}),
            "Watchdog": SimpleNamespace(note=lambda doing: None, close=lambda: self.said.append("watchdog ended")),
            "requeue_job": True,
        }.items():
            self.replace(name, self._recorder(name, result))

    def replace(self, name: str, part: Any) -> None:
        """Puts `part` in place of a name of the modules of the four acts."""
        modules = [module for module in (beginning, assemble, train) if hasattr(module, name)]
        assert modules, name
        for module in modules:
            self._patch.setattr(module, name, part)

    def _saying(self, who: str) -> Callable[[Any], None]:
        return lambda record: self.said.append((who, record))

    def _recorder(self, name: str, result: Any) -> Callable[..., Any]:
        def called(*places: Any, **names: Any) -> Any:
            self.given[name] = places, names
            self.said.append(name)
            return result

        return called

    def _model(self, config: RunConfig, classes: tuple[int, ...]) -> Any:
        self.initial_seed = torch.initial_seed()
        self.given["make_model"] = (config, classes), {}
        return SimpleNamespace(wavlm=SimpleNamespace(compile_layers=lambda: self.said.append("compiled")))

    def _record(self, directory: Path) -> Any:
        return SimpleNamespace(
            content={"segments": ["the first"], "run": "id"},
            add_training_data=lambda *data: self.said.append(("data", directory, *data)),
            check_fingerprints=lambda *asked: self.said.append(("checked", *asked)),
            refuse_lost_checkpoints=lambda: self.said.append("no checkpoint was lost"),
            warn_of_lost_updates=lambda: None,
            note_checkpoint=lambda step: None,
            inherit=lambda other: self.said.append("inherited"),
            begin_segment=lambda segment: self.given.update(segment=((), segment)),
        )

    def _opened(self, seed: int, validation_share: float | None) -> Any:
        schedule = SimpleNamespace(
            statistics=lambda: "statistics",
            restore=lambda state: self.said.append(("plan goes on", state["key"])),
            begin_at=lambda start, state: self.said.append(("plan begins", start)),
            state=lambda step: {"of": step},
            beginning=lambda: {"origin": 0},
        )
        return SimpleNamespace(
            classes=CLASSES,
            opened_with=seed,
            fingerprints=lambda: self.fingerprints,
            source_names=lambda: ["speech"],
            schedule=lambda: schedule,
            plan_key=lambda: "k",
            places=lambda: {"shards.speech": "here"},
            label_sets={},
            training_rows=lambda: "rows",
            validation_specs=lambda: self.held_out,
            label_counts=lambda number: torch.arange(CLASSES[number]).numpy() == number + 2,
            data=SimpleNamespace(
                max_skip_rate=0.02,
                split_seed=5,
                validation_share=validation_share or 0.125,
                all_sets={"speech": {"shards": "here"}},
                label_folders=dict,
                noise=None,
            ),
            close=lambda: self.said.append("closed"),
        )

    def _fit(self, module: Any, loader: Any, *, ckpt_path: str | None) -> None:
        self.given["fit"] = (module, loader), {"ckpt_path": ckpt_path}
        self.given["StepBoundary"][1]["on_start"]()

    def saved(self, folder: Path, step: int, **changed: Any) -> Path:
        """A checkpoint after so many updates; of this run, unless the folder is another's."""
        path = folder / f"step-{step:08d}.ckpt"
        folder.mkdir(parents=True, exist_ok=True)
        plan = {"plan_version": PLAN_VERSION, "key": "k"}
        own = {"step": step, "plan": plan, "voids": 0, "health": "kept", "fingerprints": self.fingerprints, **changed}
        torch.save({"state_dict": {}, "openwavlm": own}, path)
        return path

    def run(self, *overrides: str, rank: int = 0, world_size: int = 1) -> dict[str, Any]:
        """The launch; the test's own generator stays as it was."""
        values = plain(compose([*SETTINGS, *overrides]))
        with torch.random.fork_rng(devices=[]):
            place = train.Launch(RunConfig.of(values), values, self.directory, rank, world_size)
            return train.run_launch(place, {"optim.lr": (3, 4)})


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    return Launch(tmp_path, monkeypatch)


def test_a_first_launch_gives_every_part_its_settings(launch: Launch) -> None:
    summary = launch.run()
    assert (summary["updates"], summary["complete"], summary["this_launch"]["audio_seconds"]) == (18, False, 7.2)
    assert launch.initial_seed == 11 and launch.given["make_model"][0][1] == CLASSES
    assert launch.said[:2] == [
        (
            "data",
            launch.directory,
            plain(compose(SETTINGS))["data"] | {"validation_share": 0.125},
            launch.fingerprints,
            ["speech"],
        ),
        ("checked", launch.fingerprints, [], {"shards.speech": "here"}),
    ]
    assert not {"begin_branch", "_begin_from", "check_head", "compiled", "inherited"} & {str(one) for one in launch.said}

    (model, optim, objective), named = launch.given["TrainingModule"]
    assert model is not None and (optim.updates, objective.updates) == (20, 20)
    mixing = objective.mixing
    assert (objective.loss.feature_penalty, mixing.prob, objective.seed) == (3, 0.2, 11)
    assert objective.target_weights == [0.75, 0.25] and objective.unmasked_every == 4
    assert named["logmel_map"] is objective.logmel_map is None
    assert named["max_skip_rate"] == 0.02 and named["float16"] is False and named["fingerprints"] == launch.fingerprints
    assert named["plan_state"](6) == {"plan_version": PLAN_VERSION, "key": "k", "of": 6}
    assert named["health"] == "figures of health" and named["health_state"]() == "the rules' state"
    assert named["records"]() == {"launch": 1, "run": "id"}
    record = StepRecord(1, {}, 0.0, 0.0, with_unmasked=False)
    named["on_record"](record)
    assert launch.said[-2:] == [("log", record), ("rules", record)]

    (_, builder, loading), steps = launch.given["StepLoader"]
    assert steps == {"rank": 0, "world_size": 1, "start_step": 0, "num_steps": 20} and loading.workers >= 0
    assert builder.draws.seed == 11 and builder.draws.mixing is mixing and builder.draws.layers == 2
    (specs, judged, _, counts, _), _ = launch.given["Evaluation"]
    assert specs == ["spec"] and judged.draws.mixing is None and judged.draws.layer_drop == 0
    assert judged.draws.seed == 5, "masks of validation are of the split's seed, not of the run's"
    assert [(len(one), int(one.argmax())) for one in counts] == [(10, 2), (7, 3)]

    (where, _), log = launch.given["RunLog"]
    assert where == launch.directory and log["last_step"] == 0 and log["updates"] == 20
    row = log["figures"].row(
        StepRecord(1, {**dict.fromkeys(SUMS, 4.0), "cross_entropy_2": 8.0, "correct_2": 0.0}, 0.0, 0.0, False)
    )
    assert row["loss"] == 0.75 * 1 + 0.25 * 2 + 3 * 1
    _, boundary = launch.given["StepBoundary"]
    assert (boundary["updates"], boundary["stop_after"], boundary["probe_every"]) == (20, 18, 5)
    assert boundary["evaluation"] == "evaluation"
    assert launch.given["LiveProbe"][0][1:] == ("rows", launch.directory)
    boundary["probe"](SimpleNamespace(model=SimpleNamespace(wavlm="encoder")), 5)
    assert launch.said[-1][:3] == (5, ["encoder", 0.5], {"of": "encoder"})
    assert launch.given["Watchdog"][0] == (1800, 0, log_file(launch.directory, 0))
    assert {"closed", "log closed", "watchdog ended"} <= {one for one in launch.said if isinstance(one, str)}
    (_, precision, updates, *_), _ = launch.given["make_trainer"]
    assert (precision, updates) == ("32-true", 20) and launch.given["fit"][1] == {"ckpt_path": None}
    (config, *_), monitor = launch.given["make_monitor"]
    assert (config.seed, monitor["start"], monitor["state"]) == (11, 0, None)
    segment = launch.given["segment"][1]
    assert (segment["from_step"], segment["world_size"], segment["plan"]) == (0, 1, {"key": "k", "origin": 0})
    assert segment["changes"] == {"optim.lr": [3, 4]} and segment["fingerprints"] == launch.fingerprints


def test_a_launch_goes_on_from_its_own_checkpoint_with_its_health_and_plan(launch: Launch) -> None:
    launch.checkpoint = launch.saved(launch.directory / "checkpoints", 6)
    launch.run("init_from=elsewhere")
    assert launch.given["check_head"][0] == (launch.checkpoint, [14, 11], launch.fingerprints), "special rows and classes"
    assert "_begin_from" not in launch.given, "the beginning is read at the first launch alone"
    assert ("plan goes on", "k") in launch.said
    assert launch.given["StepLoader"][1]["start_step"] == 6 and launch.given["RunLog"][1]["last_step"] == 6
    assert launch.given["fit"][1] == {"ckpt_path": str(launch.checkpoint)}
    monitor = launch.given["make_monitor"][1]
    assert (monitor["start"], monitor["state"]["health"]) == (6, "kept")
    assert launch.given["segment"][1]["from_step"] == 6


def test_a_branch_begins_with_the_other_runs_weights_and_plan_but_with_health_rules_of_its_own(
    launch: Launch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = launch.saved(tmp_path_factory.mktemp("other") / "checkpoints", 9)
    launch.run(f"branch_from={other}")
    (checkpoint, directory, *_), _ = launch.given["begin_branch"]
    assert (checkpoint, directory) == (other, launch.directory) and "inherited" in launch.said
    assert launch.given["fit"][1] == {"ckpt_path": str(other)} and launch.given["StepLoader"][1]["start_step"] == 9
    monitor = launch.given["make_monitor"][1]
    assert (monitor["start"], monitor["state"]) == (9, None)
    assert launch.given["segment"][1]["changes"] == {"optim.lr": [1, 2]}, "to the run that it branches from"


def test_a_run_that_begins_from_a_checkpoint_takes_its_encoder_before_its_layers_are_compiled(launch: Launch) -> None:
    launch.run("init_from=elsewhere", "model.compile_layers=true", "precision=16-mixed")
    assert launch.given["_begin_from"][0][1].init_from == "elsewhere" and launch.said.count("compiled") == 1
    assert launch.said.index("_begin_from") < launch.said.index("compiled")
    assert launch.given["TrainingModule"][1]["float16"] is True


@pytest.mark.parametrize(("step", "stop_after", "trains"), [(19, 20, True), (20, None, False), (18, 18, False), (17, 18, True)])
def test_a_launch_that_has_no_update_left_trains_nothing(
    launch: Launch, step: int, stop_after: int | None, trains: bool, caplog: pytest.LogCaptureFixture
) -> None:
    launch.checkpoint = launch.saved(launch.directory / "checkpoints", step)
    with caplog.at_level(logging.INFO):
        summary = launch.run(f"stop_after={'null' if stop_after is None else stop_after}")
    assert ("fit" in launch.given) is trains
    assert trains or summary["updates"] == step
    assert (f"has {step} updates already; nothing to do" in caplog.text) is not trains


def test_further_ranks_read_their_part_and_write_nothing(launch: Launch) -> None:
    launch.run(rank=1, world_size=2)
    steps = launch.given["StepLoader"][1]
    assert (steps["rank"], steps["world_size"]) == (1, 2)
    assert not {"RunLog", "make_monitor", "announce", "segment"} & set(launch.given)
    assert launch.given["TrainingModule"][1]["health_state"]() is None
    assert launch.given["Watchdog"][0] == (1800, 1, log_file(launch.directory, 1))
    assert "requeue_job" not in launch.given
    assert not (launch.directory / "summary.json").exists()


def test_without_probes_a_watchdog_and_held_out_rows_there_are_none(launch: Launch) -> None:
    launch.held_out = []
    launch.run("probes.every=0", "trainer.watchdog_s=null")
    assert not {"LiveProbe", "Watchdog", "Evaluation"} & set(launch.given)
    boundary = launch.given["StepBoundary"][1]
    assert boundary["probe"] is None and boundary["evaluation"] is None


@pytest.mark.parametrize(
    ("updates", "requeue", "asked", "queued"),
    [(18, True, True, True), (18, True, False, False), (18, False, True, False), (20, True, True, False)],
)
def test_a_job_is_queued_again_if_slurm_warned_it_before_its_last_update_and_the_config_allows_it(
    launch: Launch, updates: int, requeue: bool, asked: bool, queued: bool
) -> None:
    launch.replace("make_trainer", launch._recorder("make_trainer", SimpleNamespace(fit=launch._fit, global_step=updates)))
    launch.replace("StepBoundary", launch._recorder("StepBoundary", SimpleNamespace(requeue=asked)))
    launch.run(f"trainer.requeue={str(requeue).lower()}")
    assert ("requeue_job" in launch.given) is queued


@pytest.mark.parametrize(
    ("processes", "on_this_node", "strategy", "devices", "nodes", "kind"),
    [
        (1, None, "ddp", 1, 1, str),
        (1, None, "fsdp", 1, 1, str),
        (4, 4, "ddp", 4, 1, DDPStrategy),
        (6, 2, "ddp", 2, 3, DDPStrategy),
        (6, 2, "fsdp", 2, 3, ShardedStrategy),
    ],
)
def test_the_trainer_has_all_processes_of_all_nodes_and_nothing_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, processes: int, on_this_node: int | None, strategy: str, devices: int, nodes: int,
    kind: type,
) -> None:  # fmt: skip
    given: dict[str, Any] = {}
    loop = SimpleNamespace(epoch_loop=SimpleNamespace())
    monkeypatch.setattr(trainer, "Trainer", lambda **named: given.update(named) or SimpleNamespace(fit_loop=loop))
    if on_this_node is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(on_this_node))
    settings = TrainerSettings(accelerator="cpu", strategy=strategy)
    for precision, scaled in (("32-true", False), ("bf16-mixed", False), ("16-mixed", True)):
        trainer.make_trainer(settings, precision, 20, tmp_path, "boundary", processes)
        assert (given["accelerator"], given["devices"], given["num_nodes"]) == ("cpu", devices, nodes)
        assert given["precision"] == (None if scaled else precision), "float16's scale of the loss is the module's"
        mixed = [plugin for plugin in given["plugins"] if isinstance(plugin, MixedPrecision)]
        assert len(mixed) == scaled and not any(plugin.scaler.is_enabled() for plugin in mixed)
    assert isinstance(given["strategy"], kind) and (kind is not str or given["strategy"] == "auto")
    environment = next(plugin for plugin in given["plugins"] if isinstance(plugin, ClusterEnvironment))
    assert isinstance(environment, LightningEnvironment if processes == 1 else TorchElasticEnvironment)
    assert sum(isinstance(plugin, AtomicCheckpointIO) for plugin in given["plugins"]) == 1
    assert given["callbacks"] == ["boundary"] and given["default_root_dir"] == str(tmp_path)
    assert (given["max_steps"], given["max_epochs"], given["limit_val_batches"]) == (20, -1, 0)
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler")
    assert [given[name] for name in off] == [False] * 5


def test_layers_are_skipped_on_one_process_only(launch: Launch) -> None:
    launch.run("model.layer_drop_mode=skip")
    assert "fit" in launch.given
    for processes in (2, 3):
        with pytest.raises(ValueError, match="layer_drop_mode=skip works on one process only"):
            launch.run("model.layer_drop_mode=skip", world_size=processes)


@pytest.mark.parametrize("workers", [0, 2])
def test_time_spent_waiting_for_batches_is_the_loaders_where_it_has_workers(launch: Launch, workers: int) -> None:
    clocks: list[tuple[Any, ...]] = []
    launch.replace("WallClock", lambda *given: clocks.append(given) or SimpleNamespace(paused=lambda: None))
    launch.run(f"loader.workers={workers}")
    ((waited, _),) = clocks
    assert (waited is None) is (workers == 0) and (waited is None or waited() == 0.0)

"""W&B and MLflow get the same figures as TensorBoard, and a resumed run goes on in the same curve."""

import json
import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest

from openwavlm.training.settings import Logging
from openwavlm.training.trackers import open_trackers


class Wandb:
    """What is called of W&B, written down."""

    def __init__(self) -> None:
        self.inits: list[dict] = []
        self.logged: list[tuple[dict, int]] = []

    def init(self, **settings: object) -> SimpleNamespace:
        self.inits.append(settings)
        return SimpleNamespace(log=lambda values, step: self.logged.append((values, step)), finish=lambda: None)


class Mlflow:
    """What is called of MLflow's client."""

    experiments: ClassVar[dict[str, str]] = {}  # of the server, by name

    def __init__(self, tracking_uri: str) -> None:
        self.uri, self.calls = tracking_uri, []
        Mlflow.last = self

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        return name

    def create_run(self, experiment: str, run_name: str) -> SimpleNamespace:
        self.calls.append(("create_run", experiment, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    def log_param(self, run: str, key: str, value: object) -> None:
        self.calls.append(("param", run, key, value))

    def log_metric(self, run: str, name: str, value: float, step: int) -> None:
        self.calls.append(("metric", run, name, value, step))

    def set_terminated(self, run: str) -> None:
        self.calls.append(("end", run))


def test_wandb_keeps_one_id_over_all_launches(tmp_path, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for _ in range(2):
        (tracker,) = open_trackers(Logging(wandb="offline", project="p"), tmp_path, {"optim.lr": 1.0})
        tracker.scalars({"train/loss": 2.0}, 7)
        tracker.close()
    first, second = (init["id"] for init in wandb.inits)
    assert first == second == json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert wandb.inits[0]["mode"] == "offline" and wandb.inits[0]["config"] == {"optim.lr": 1.0}
    assert wandb.logged == [({"train/loss": 2.0}, 7)] * 2
    # W&B's `init`: with "allow" an id that exists is resumed, and one that does not is made.
    for init in wandb.inits:
        assert (init["resume"], init["project"], init["name"], init["dir"]) == ("allow", "p", tmp_path.name, str(tmp_path))


def test_mlflow_goes_on_in_the_run_that_it_made(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=Mlflow))
    settings = Logging(mlflow="file:///runs", project="p")
    (tracker,) = open_trackers(settings, tmp_path, {"optim.lr": 1.0})
    tracker.scalars({"train/loss": 2.0}, 7)
    assert Mlflow.last.uri == "file:///runs"
    assert Mlflow.last.calls[-2:] == [("param", "r1", "optim.lr", 1.0), ("metric", "r1", "train/loss", 2.0, 7)]
    open_trackers(settings, tmp_path, {"optim.lr": 1.0})
    assert Mlflow.last.calls == [] and json.loads((tmp_path / "mlflow.json").read_text()) == {"id": "r1"}


@pytest.mark.parametrize(("experiments", "experiment"), [({}, "p"), ({"p": "17", "q": "18"}, "17")])
def test_an_mlflow_run_is_made_in_the_experiment_of_its_name_and_ended(tmp_path, monkeypatch, experiments, experiment):
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=Mlflow))
    monkeypatch.setattr(Mlflow, "experiments", experiments)
    (tracker,) = open_trackers(Logging(mlflow="file:///runs", project="p"), tmp_path, {})
    assert ("create_run", experiment, tmp_path.name) in Mlflow.last.calls and ("end", "r1") not in Mlflow.last.calls
    tracker.close()
    assert Mlflow.last.calls[-1] == ("end", "r1")


@pytest.mark.parametrize(("settings", "name"), [({"wandb": "offline"}, "wandb"), ({"mlflow": "file:///x"}, "mlflow")])
def test_a_missing_package_is_named_with_the_way_to_get_it(tmp_path, monkeypatch, settings, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"logger\.{name} is set, but the package {name} is not installed: pip install"):
        open_trackers(Logging(**settings), tmp_path, {})


def test_without_being_asked_there_is_no_tracker(tmp_path):
    assert open_trackers(Logging(), tmp_path, {}) == []

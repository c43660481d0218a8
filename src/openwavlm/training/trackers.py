"""Experiment trackers beside TensorBoard: Weights & Biases and MLflow, both optional and usable without a network."""

import importlib
import json
import os
import secrets
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from openwavlm.runtime.atomic import write_atomically
from openwavlm.training.settings import Logging


class Tracker(Protocol):
    """Interface of a tracker; its id is in the run directory, so that a resumed run continues the same curve."""

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Logs named figures of one update."""

    def close(self) -> None:
        """Sends or writes the rest."""


def open_trackers(settings: Logging, directory: Path, config: dict[str, Any]) -> list[Tracker]:
    """Opens the trackers of the settings; the flat `config` becomes the run's parameters there.

    Raises:
        ValueError: If a package is missing.
    """
    trackers: list[Tracker] = []
    if settings.wandb != "off":
        trackers.append(_WandbTracker(directory, settings.project, settings.wandb, config))
    if settings.mlflow is not None:
        trackers.append(_MlflowTracker(directory, settings.project, settings.mlflow, config))
    return trackers


class _WandbTracker:
    def __init__(self, directory: Path, project: str, mode: str, config: dict[str, Any]) -> None:
        wandb = _package("wandb", "logger.wandb")
        identity = _kept_identity(directory / "wandb.json", lambda: secrets.token_hex(4))
        self._run = wandb.init(
            project=project, name=directory.name, id=identity, resume="allow", dir=str(directory), mode=mode, config=config
        )

    def scalars(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class _MlflowTracker:
    def __init__(self, directory: Path, project: str, uri: str, config: dict[str, Any]) -> None:
        if uri.startswith("file:"):
            # MLflow 3 refuses folders by default; its databases need packages that a training does not.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow = _package("mlflow", "logger.mlflow")
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(project)
        experiment = found.experiment_id if found is not None else self._client.create_experiment(project)
        known = (directory / "mlflow.json").is_file()
        self._id = _kept_identity(
            directory / "mlflow.json", lambda: self._client.create_run(experiment, run_name=directory.name).info.run_id
        )
        if not known:
            for key, value in config.items():
                self._client.log_param(self._id, key, value)

    def scalars(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _package(name: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{key} is set, but the package {name} is not installed: pip install 'openwavlm[tracking]'") from error


def _kept_identity(path: Path, make: Any) -> str:
    """The id of an earlier launch of the run, or a new one."""
    if path.is_file():
        return str(json.loads(path.read_text())["id"])
    identity = str(make())
    write_atomically(path, (json.dumps({"id": identity}) + "\n").encode())
    return identity

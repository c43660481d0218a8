"""The four tables of a run, opened together at the step where a launch begins, and their state for checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openwavlm.training.records import CsvRecord, read_record

HEALTH_COLUMNS = ["step", "rule", "value", "threshold", "sentence"]


class RunTables:
    """`metrics.csv`, `validation.csv`, `health.csv` and, if the run is probed, `probes.csv`.

    Args:
        metrics, validation: Columns of these tables.
        last_step: Step of the checkpoint from which the run resumes, 0 for a new run.
        prefixes: Of `records.known_records`.

    Attributes:
        damaged: Table → its damage before `last_step`, one sentence each.

    Raises:
        ValueError: If one has other columns.
    """

    def __init__(
        self,
        directory: Path,
        *,
        metrics: list[str],
        validation: list[str],
        last_step: int,
        prefixes: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self._directory, self._last_step, self._prefixes = directory, last_step, prefixes
        self.damaged: dict[str, str] = {}
        self.metrics = self._opened("metrics.csv", metrics, every_update=True)
        self.validation = self._opened("validation.csv", validation)
        self.health = self._opened("health.csv", HEALTH_COLUMNS)
        self._probes = self._earlier_probes()

    def _opened(self, name: str, columns: list[str], *, every_update: bool = False) -> CsvRecord:
        path, prefix = self._directory / name, self._prefixes.get(name)
        record = CsvRecord(path, columns, last_step=self._last_step, prefix=prefix, every_update=every_update)
        if record.damage:
            self.damaged[name] = record.damage
        return record

    def _earlier_probes(self) -> CsvRecord | None:
        """The table of earlier launches' probes, with columns from its first line; if that is damaged, the file is deleted."""
        path = self._directory / "probes.csv"
        if not path.exists() and path.name not in self._prefixes:
            return None
        columns = read_record(path).columns if path.exists() else []
        whole = columns[:1] == ["step"] and columns[1:] == [f"layer_{layer}" for layer in range(len(columns) - 1)]
        record = self._opened(path.name, columns if whole else ["step"])
        if whole:
            return record
        record.close()
        path.unlink()
        return None

    def probes(self, columns: list[str]) -> CsvRecord:
        """The table of probes, created at the first probe.

        Raises:
            ValueError: If an earlier launch's has other columns.
        """
        if self._probes is None:
            self._probes = CsvRecord(self._directory / "probes.csv", columns)
        if self._probes.columns != columns:
            raise ValueError(
                f"{self._probes.path} has other columns than this model's layers: start a new run under another name"
            )
        return self._probes

    def _all(self) -> list[CsvRecord]:
        return [record for record in (self.metrics, self.validation, self.health, self._probes) if record is not None]

    def record(self, launch: int, run: str) -> dict[str, Any]:
        """Length and checksum of each table so far, with the number of the launch and the run's identity, for a checkpoint."""
        return {"launch": launch, "run": run, "tables": {record.path.name: record.prefix() for record in self._all()}}

    def sync(self) -> None:
        """Forces the rows to disk, before a checkpoint."""
        for record in self._all():
            record.sync()

    def close(self) -> None:
        """Closes the files."""
        for record in self._all():
            record.close()

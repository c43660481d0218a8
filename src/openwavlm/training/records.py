"""`metrics.csv`, `validation.csv`, `health.csv`: rows by step, exact floats, flushed; rows past a checkpoint are cut on resume."""

import os
from pathlib import Path

from openwavlm.resources import naming
from openwavlm.training.checkpoint import write_atomically

Value = int | float | str | None


def _field(value: Value) -> str:
    if isinstance(value, str):
        return '"' + value.replace('"', '""').replace("\n", " ") + '"'
    return "" if value is None else repr(value)


class CsvRecord:
    """An append-only table keyed by its first column, `step`.

    Args:
        path: The file.
        columns: Names; the first is `step`.
        last_step: Rows past this step are cut (the run starts again after it), as is a torn last line.

    Raises:
        ValueError: If an existing file has other columns.
    """

    def __init__(self, path: Path, columns: list[str], *, last_step: int = 0) -> None:
        self.path, self.columns = path, columns
        header = ",".join(columns) + "\n"
        kept = [header]
        if path.exists():
            with path.open(errors="replace") as lines:
                first = next(lines, header)
                if first != header:
                    raise ValueError(f"{path} has other columns than this version writes: start a new run (another name)")
                for line in lines:
                    step = line.split(",", 1)[0]
                    # After a loss of power the end may hold anything; what lies before the checkpoint was forced to disk.
                    if not line.endswith("\n") or not step.isdecimal() or int(step) > last_step:
                        break
                    kept.append(line)
        write_atomically(path, "".join(kept).encode())
        self._file = path.open("a")

    def write(self, values: dict[str, Value]) -> None:
        """Appends one row; a missing value is an empty field."""
        assert set(values) <= set(self.columns)
        with naming(self.path):
            self._file.write(",".join(_field(values.get(name)) for name in self.columns) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Forces the rows to disk: what a checkpoint stands on."""
        with naming(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

"""Log messages of each rank in a file of the run directory."""

import contextlib
import logging
import sys
from pathlib import Path


def log_file(directory: Path, rank: int) -> Path:
    """Log file of one rank."""
    return directory / "logs" / f"rank-{rank:04d}.log"


class _LogFile(logging.FileHandler):
    """A file of messages. If it cannot be written, one line is printed on standard error, and the run continues."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Called by `logging` for an error of `emit`."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            reason = error.strerror or str(error)
            sys.stderr.write(f"{self.baseFilename} cannot be written ({reason}): messages of this launch are missing from it\n")

    def close(self) -> None:
        """Ends logging to the file; the last write may fail too."""
        logging.getLogger().removeHandler(self)
        with contextlib.suppress(OSError):
            super().close()


def write_log(directory: Path, rank: int) -> logging.Handler:
    """Writes every later message of this process to the rank's file too, with its time, until the returned handler is closed."""
    path = log_file(directory, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    return handler

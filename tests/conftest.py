"""Makes the modules beside this file (`synthetic`) importable from every test folder; one thread, as `make test` has."""

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Sums of another number of threads round differently, and threads that wait for one another are slower. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def no_handler_of_an_earlier_command() -> Iterator[None]:
    """Removes the log handler of a command that a test called in this process: its standard error is closed after that test."""
    yield
    for handler in logging.getLogger().handlers[:]:
        if type(handler).__name__ in ("StreamHandler", "RichHandler"):
            logging.getLogger().removeHandler(handler)

"""Makes the modules beside this file (`synthetic`) importable from every test folder; keeps the tests of a slow file together."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
_SLOW = {"smoke", "learning", "parity"}  # folders whose files make corpora and models once for all their tests


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sends each slow file to one worker as a whole: spread over two, both would make what its tests share."""
    for item in items:
        if item.path.parent.name in _SLOW and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))

"""torchaudio as a reference: its tests are skipped where it cannot be imported, as beside a torch that it was not built for."""

import warnings
from types import ModuleType

import pytest


def torchaudio(*, whole_file: bool = False) -> ModuleType:
    """Returns the module, or skips the test, or the whole test file that is being imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 2.8 and 2.9 warn of deprecations on import
            import torchaudio as module
            import torchaudio.compliance.kaldi
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(
            f"torchaudio cannot be imported beside this torch: {str(error).splitlines()[0]}", allow_module_level=whole_file
        )
    return module

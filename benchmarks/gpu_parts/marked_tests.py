"""The tests that are marked `gpu`, in a pytest of their own."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from gpu_parts.child import Reporter
from gpu_parts.setting import Setting, SkippedError

REPOSITORY = Path(__file__).parents[2]
_MARGIN_S = 3.0


def marked_files(tests: Path) -> list[Path]:
    """Test files with a test that is marked `gpu`; the others need not be imported."""
    return [path for path in sorted(tests.rglob("test_*.py")) if "pytest.mark.gpu" in path.read_text()]


def tally(output: str) -> dict[str, int]:
    """The counts of pytest's last line."""
    lines = [line for line in output.splitlines() if re.search(r"\d+ (passed|failed|skipped|error|deselected)", line)]
    return {word: int(count) for count, word in re.findall(r"(\d+) (\w+)", lines[-1].split(" in ")[0])} if lines else {}


def measure(setting: Setting, report: Reporter) -> None:
    """Reports the counts and the end of the output.

    Raises:
        SkippedError: If there is no pytest or no such test, or if they took longer than the box.
    """
    if importlib.util.find_spec("pytest") is None:
        raise SkippedError("pytest is not installed")
    files = marked_files(REPOSITORY / "tests")
    if not files:
        raise SkippedError("no test is marked gpu")
    names = [str(path.relative_to(REPOSITORY)) for path in files]
    # Warnings are errors in the tested environment only; here the packages are whatever the machine has.
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-W", "default", *names]
    limit = max(1.0, setting.left_s() - _MARGIN_S)
    report(files=names)
    try:
        ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired as error:
        raise SkippedError(f"the tests did not end within {limit:.0f} s") from error
    lines = ended.stdout.splitlines()
    report(exit_status=ended.returncode, counts=tally(ended.stdout), output=lines[-30:])
    if ended.returncode not in (0, 5):
        raise AssertionError(f"pytest ended with status {ended.returncode}: {lines[-1] if lines else ended.stderr[-300:]}")

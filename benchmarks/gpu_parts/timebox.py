"""Time boxes: each part gets its share of the time that is left, and a part that fails does not stop the others.

    box = max(left · share / shares of this part and those after it, least_s)

Time that a part does not use therefore goes to the parts after it. A part whose `least_s` is more than the time left is skipped.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A part of the program.

    Attributes:
        name: As in `--only` and in the JSON.
        module: Module of this package whose `measure` runs it.
        share: Share of the whole time; those of all parts sum to 1.
        least_s: Seconds below which it is not begun, (toy, full).
        needs: Parts that must be done before it.
        settings: Arguments of `measure`.
    """

    name: str
    module: str
    share: float
    least_s: tuple[float, float]
    needs: tuple[str, ...] = ()
    settings: Mapping[str, Any] | None = None

    def least(self, size: str) -> float:
        """Seconds below which it is not begun at a size."""
        return self.least_s[size == "full"]


def box_of(parts: Sequence[Part], left_s: float, size: str) -> float | None:
    """Time box of the first of `parts`, those that are still to come, in seconds; None = not enough time is left for it."""
    first = parts[0]
    least = first.least(size)
    if left_s < least:
        return None
    return max(left_s * first.share / sum(part.share for part in parts), least)


def run_parts(
    parts: Sequence[Part],
    total_s: float,
    run: Callable[[Part, float], Result],
    save: Callable[[str, Result], None],
    *,
    size: str,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Result]:
    """Runs parts one after another, each in its time box.

    Args:
        parts: In the order in which they run.
        total_s: Seconds for all of them.
        run: Runs a part in a box of so many seconds; returns its result, which has a `status`.
        save: Called with each part's name and result as soon as it is known.
        size: `toy` or `full`.
        clock: Seconds from any origin.

    Returns:
        Result of each part.
    """
    began, results = clock(), {}
    for number, part in enumerate(parts):
        left = total_s - (clock() - began)
        box = box_of(parts[number:], left, size)
        lacking = [name for name in part.needs if results.get(name, {}).get("status") != "done"]
        if lacking:
            result = {"status": "skipped", "reason": f"it needs {', '.join(lacking)}, which is not done"}
        elif box is None:
            result = {"status": "skipped", "reason": f"{max(0.0, left):.0f} s are left, but it needs {part.least(size):g} s"}
        else:
            started = clock()
            result = {**_guarded(run, part, box), "box_s": round(box, 1)}
            result["seconds"] = round(clock() - started, 1)
        results[part.name] = result
        save(part.name, result)
    return results


def _guarded(run: Callable[[Part, float], Result], part: Part, box: float) -> Result:
    try:
        return run(part, box)
    except Exception as error:
        return {"status": "failed", "reason": sentence(error)}


def sentence(error: BaseException) -> str:
    """An error in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__

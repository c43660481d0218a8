"""State of each stage of a chain: done, begun, to do, or stale."""

import re
from typing import Any

from openwavlm.pipeline.stages import Chain

_STAGE_FOLDER = re.compile(r".+-[0-9a-f]{12}")


def graph(chain: Chain) -> list[dict[str, Any]]:
    """Stages of a chain in the order of their making, then those of earlier settings.

    Args:
        chain: After a (dry) run of its stages.

    Returns:
        For each `stage` its `state` (`done`; `begun`: an earlier call ended inside it, the next resumes it; `to do`; `stale`: its
        folder exists, but the graph no longer contains it), `folder`, `seconds` of its making (None if unknown) and `bytes` on disk.
    """
    rows = []
    for stage in chain.stages:
        state = "done" if stage.done else "begun" if stage.folder.exists() else "to do"
        rows.append(_row(chain, stage.folder.relative_to(chain.folder).as_posix(), state, stage.seconds if stage.done else None))
    present = {row["folder"] for row in rows}
    there = [path.relative_to(chain.folder).as_posix() for pattern in ("*", "*/*") for path in chain.folder.glob(pattern)]
    folders = [name for name in there if _STAGE_FOLDER.fullmatch(name) and not _STAGE_FOLDER.fullmatch(name.rpartition("/")[0])]
    return rows + [_row(chain, name, "stale", None) for name in sorted(folders) if name not in present]


def _row(chain: Chain, folder: str, state: str, seconds: float | None) -> dict[str, Any]:
    size = sum(path.stat().st_size for path in (chain.folder / folder).rglob("*") if path.is_file())
    return {"stage": folder[:-13], "state": state, "folder": folder, "seconds": seconds, "bytes": size}


def graph_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The graph as the lines of a table."""
    width = max(len(row["stage"]) for row in rows)
    lines = []
    for row in rows:
        took = "" if row["seconds"] is None else f"{row['seconds']:8.1f} s"
        size = f"{row['bytes'] / 1e6:9.1f} MB" if row["bytes"] else ""
        lines.append(f"{row['state']:6} {row['stage']:{width}} {took:10} {size:12} {row['folder']}".rstrip())
    counts = {state: sum(row["state"] == state for row in rows) for state in ("done", "begun", "to do", "stale")}
    lines.append(", ".join(f"{count} {state}" for state, count in counts.items() if count) + "; nothing was made")
    if counts["stale"]:
        lines.append("stale stages belong to earlier settings: delete their folders if you do not go back to them")
    return lines

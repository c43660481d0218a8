"""The recipe of a run: optimiser, schedule, batch, dates, software, machine, commands, and differences between runs."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openwavlm.report.content import Iteration
from openwavlm.report.words import plural
from openwavlm.training.run_files import flatten


def recipe_of(iteration: Iteration) -> list[tuple[str, str]]:
    """(topic, text) on how a run was made, from `config.yaml`, `run.json` and its log; topics without a record are left out."""
    optim, segments = iteration.config.get("optim") or {}, iteration.record.get("segments") or []
    last = segments[-1] if segments else {}
    later = f"{len(segments)}; from updates {', '.join(str(segment['from_step']) for segment in segments)}"
    rows = {
        "optimiser": _optimiser(optim),
        "learning rate": _learning_rate(optim),
        "batch": _batch(iteration.config, last),
        "date": _dates(iteration.run / "logs" / "rank-0000.log"),
        "software": _software(last),
        "machine": _machine(last),
        "launches": later if segments[1:] else "",
        "command": " ".join([f"openwavlm {_program(iteration)}", *map(_quoted, overrides_of(iteration.record))])
        if segments
        else "",
    }
    return [(topic, text) for topic, text in rows.items() if text]


def _program(iteration: Iteration) -> str:
    return "finetune" if "task" in iteration.config else "train"


def _optimiser(optim: dict[str, Any]) -> str:
    if not {"betas", "eps", "weight_decay", "clip_norm"} <= optim.keys():
        return ""
    betas = ", ".join(map(str, optim["betas"]))
    decayed = " (matrices only)" if optim.get("decay") == "matrices" else ""
    average = f"; running mean of the weights with decay {optim['ema']:g}" if optim.get("ema") else ""
    return (
        f"AdamW, betas {betas}, epsilon {optim['eps']:g}, weight decay {optim['weight_decay']:g}{decayed}; gradient "
        f"clipped at a norm of {optim['clip_norm']:g}{average}"
    )


def _learning_rate(optim: dict[str, Any]) -> str:
    if not {"lr", "warmup_updates", "schedule", "updates"} <= optim.keys():
        return ""
    down = f"linear decay to {100 * optim.get('final_share', 0):g} %"
    if optim["schedule"] == "tri_stage":
        down = f"exponential decay to {100 * optim.get('final_share', 0):g} %"
    if optim["schedule"] != "linear":
        down = f"constant, then {down} over the last {100 * optim.get('decay_share', 0):g} % of the updates"
    else:
        down += f" until update {optim['updates']}"
    return f"{optim['lr']:g} at its peak: linear warm-up over {plural(optim['warmup_updates'], 'update')}, {down}"


def _batch(config: dict[str, Any], launch: dict[str, Any]) -> str:
    batch = config.get("batch") or {}
    if not {"seconds", "micro_seconds"} <= batch.keys():
        return ""
    processes = f" on {plural(launch['world_size'], 'process')}" if launch.get("world_size") else ""
    precision = f", precision {config['precision']}" if config.get("precision") else ""
    return f"{batch['seconds']:g} s of audio an update, in micro-batches of {batch['micro_seconds']:g} s{processes}{precision}"


_MINUTE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d")


def _dates(log: Path) -> str:
    """First and last minute of a run's log."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    minutes = [found[0] for line in lines if (found := _MINUTE.match(line))]
    if not minutes or minutes[0] == minutes[-1]:
        return minutes[0] if minutes else ""
    (day, _), (last_day, time) = minutes[0].split(" "), minutes[-1].split(" ")
    return f"{minutes[0]} to {time if day == last_day else minutes[-1]}"


def _software(launch: dict[str, Any]) -> str:
    versions = {**(launch.get("versions") or {}), "Python": launch.get("python"), "commit": launch.get("commit")}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def _machine(launch: dict[str, Any]) -> str:
    if not launch.get("host"):
        return ""
    return f"{launch['host']}, {plural(launch['threads'], 'thread')} a process" if launch.get("threads") else str(launch["host"])


def differences(iterations: Sequence[Iteration]) -> list[list[str]]:
    """Config keys, versions and machines that are not the same in all runs: [key, value of each run]."""
    flat = []
    for iteration in iterations:
        segments = iteration.record.get("segments") or [{}]
        last = {name: segments[-1].get(name) for name in ("commit", "python", "versions", "host", "world_size", "threads")}
        flat.append(flatten({**iteration.config, "launch": last}))
    rows = []
    for key in dict.fromkeys(key for values in flat for key in values):
        values = ["–" if each.get(key) is None else str(each[key]) for each in flat]
        if key != "name" and len(set(values)) > 1:
            rows.append([key, *values])
    return rows


def overrides_of(record: dict[str, Any]) -> list[str]:
    """The overrides of a run's first launch, as far as its record holds them; a word without `=` belongs to the value before it."""
    segments = record.get("segments") or [{}]
    words: list[str] = []
    for word in str(segments[0].get("command", "")).split(" ")[1:]:
        if "=" in word and not word.startswith("-"):
            words.append(word)
        elif words:
            words[-1] += f" {word}"
    return words


def _quoted(word: str) -> str:
    """A word for the shell, in double quotes where it has single ones."""
    return f'"{word}"' if "'" in word and not set('"$`\\!') & set(word) else shlex.quote(word)


def commands_of(iteration: Iteration) -> list[tuple[str, str]]:
    """(purpose, command) of the next steps with a run."""
    run, export = _quoted(str(iteration.run)), str(iteration.run / "export")
    layer = ((iteration.probes or {}).get("phones") or {}).get("chosen_layer")
    layers = "" if layer is None else f" {_quoted(f'layers=[{layer}]')}"
    extract = f"openwavlm extract encoder={run}/export input=RECORDINGS output=FEATURES{layers}"
    found = [
        ("Export the encoder for Transformers", f"openwavlm export run={run}"),
        ("Features of your own recordings, from the exported encoder", extract),
    ]
    overrides = [word for word in overrides_of(iteration.record) if word.split("=")[0] not in ("optim.updates", "allow_change")]
    updates = (iteration.config.get("optim") or {}).get("updates")
    if any(word.startswith("data.sources") for word in overrides) and updates:
        longer = [*overrides, f"optim.updates={2 * int(updates)}", "allow_change=[optim.updates]"]
        found.append(("Train longer (in the folder of the first launch)", "openwavlm train " + " ".join(map(_quoted, longer))))
    load = f"transformers.WavLMModel.from_pretrained({export!r})"
    found.append(("Watch the curves", f"tensorboard --logdir {run}/tensorboard"))
    return [*found, ("Load the exported encoder, to fine-tune it with your own code", load)]

"""Updates of Base or Large with the real loader, K = 500 and mixing, in each precision and with each way to save time or memory."""

from gpu_parts.child import Reporter
from gpu_parts.setting import Setting
from gpu_parts.watch import measure_training

_BF16 = "precision=bf16-mixed"
VARIANTS: dict[str, tuple[str, ...]] = {
    "bf16": (_BF16,),
    "fp32": ("precision=32-true",),
    "bf16, compiled layers": (_BF16, "model.compile_layers=true"),
    "bf16, recompute all": (_BF16, "model.recompute=all"),
    "bf16, recompute extractor": (_BF16, "model.recompute=extractor"),
    "bf16, flex, no attention dropout": (_BF16, "model.attention_backend=flex", "model.attention_dropout=0"),
}
_NEED_A_GPU = ("bf16, compiled layers", "bf16, flex, no attention dropout")
_TIMED_SHARE = 0.35  # of a variant's part of the box: the rest is for its launch, warm-up and compilation
_LONGEST_S = 20.0


def measure(setting: Setting, report: Reporter, *, experiment: str, overrides: tuple[str, ...] = ()) -> None:
    """Reports figures of each variant as it is measured; a variant for which no time is left says so."""
    found: dict[str, dict] = {}
    overrides = overrides if setting.full else ()
    slowest = 0.0
    for number, (name, settings) in enumerate(VARIANTS.items()):
        left = setting.left_s()
        if not setting.on_gpu and name in _NEED_A_GPU:
            found[name] = {"skipped": "measured on a GPU only"}
        elif left < slowest:
            found[name] = {"skipped": f"{left:.0f} s are left of the box, but a variant before it took {slowest:.0f} s"}
        else:
            seconds = min(_LONGEST_S, _TIMED_SHARE * left / (len(VARIANTS) - number))
            if not setting.full:
                seconds = min(seconds, 0.5)
            command = setting.training(experiment, *overrides, *settings)
            found[name] = measure_training(setting, command, setting.folder / f"run-{experiment}-{number}", seconds)
            slowest = max(slowest, left - setting.left_s())
        report(experiment=experiment, overrides=list(overrides), variants=found)

"""Synthesises the embedded corpus with phone times: `openwavlm synthesize --help`."""

from omegaconf import DictConfig

from openwavlm.cli.app import arguments_of, command
from openwavlm.synthesis.corpus import synthesize


@command("prep/synthesize")
def main(config: DictConfig) -> None:
    """Synthesises the corpus and prints its statistics."""
    stats = synthesize(**arguments_of(synthesize, config))
    for name, figures in stats["sets"].items():
        print(f"{name}: {figures['utterances']} utterances, {figures['minutes']:.1f} minutes, {figures['speakers']} speakers")
    accents = ", ".join(stats["held_out_accents"])
    print(f"{stats['phone_classes']} phone classes; held out: the speakers of test, the accent {accents}")

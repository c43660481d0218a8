"""Synthesises the embedded corpus with phone times: `openwavlm synthesize --help`."""

from omegaconf import DictConfig, OmegaConf

from openwavlm.cli.app import command
from openwavlm.synthesis.corpus import synthesize


@command("prep/synthesize")
def main(config: DictConfig) -> None:
    """Synthesises the corpus and prints its statistics."""
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    settings.pop("debug")
    stats = synthesize(**{str(name): value for name, value in settings.items()})
    for name, figures in stats["sets"].items():
        print(f"{name}: {figures['utterances']} utterances, {figures['minutes']:.1f} minutes, {figures['speakers']} speakers")
    print(
        f"{stats['phone_classes']} phone classes; held out: the voices of test, the accent {', '.join(stats['held_out_accents'])}"
    )

"""Synthesises the embedded corpus with phone times: `python data_prep/synthesize.py --help`."""

from openwavlm.cli.main import run

if __name__ == "__main__":
    run("synthesize")

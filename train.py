"""Launches or resumes a run: `python train.py name=NAME experiment=EXPERIMENT data.sources.speech.shards=DIR ...`."""

from openwavlm.cli.main import run

if __name__ == "__main__":
    run("train")

"""Launches or resumes a run: `python train.py name=NAME experiment=EXPERIMENT data.sources.speech.shards=DIR ...`."""

from openwavlm.launch import main

if __name__ == "__main__":
    main()

"""Launches or resumes a run: `python train.py name=NAME experiment=nano data.sources.speech.shards=DIR data.sources.speech.labels=DIR`."""

from openwavlm.launch import main

if __name__ == "__main__":
    main()

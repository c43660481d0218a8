"""Launches or resumes a run: `python train.py name=NAME experiment=EXPERIMENT data.sources.speech.shards=DIR ...`."""

from openwavlm.runtime.interrupt import end_at_interrupt

if __name__ == "__main__":
    end_at_interrupt()  # before the seconds that the imports take

from openwavlm.cli.train import main

if __name__ == "__main__":
    main()

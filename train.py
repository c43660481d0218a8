"""Launches or resumes a pre-training run: `python train.py name=first experiment=nano data.sources.x.shards=… data.sources.x.labels=…`."""

from openwavlm.launch import main

if __name__ == "__main__":
    main()

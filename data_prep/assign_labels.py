"""Labels a shard set with a codebook, or with several in one pass: `python data_prep/assign_labels.py --help`."""

from openwavlm.runtime.interrupt import end_at_interrupt

if __name__ == "__main__":
    end_at_interrupt()  # before the seconds that the imports take

from openwavlm.cli.assign_labels import main

if __name__ == "__main__":
    main()

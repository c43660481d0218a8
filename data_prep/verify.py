"""Compares shards (and labels) with checksums, counts and a recomputed sample: `python data_prep/verify.py --help`."""

from openwavlm.runtime.interrupt import end_at_interrupt

if __name__ == "__main__":
    end_at_interrupt()  # before the seconds that the imports take

from openwavlm.cli.verify import main

if __name__ == "__main__":
    main()

"""Prepares a corpus as shards with an index: `python data_prep/make_shards.py --help`."""

from openwavlm.runtime.interrupt import end_at_interrupt

if __name__ == "__main__":
    end_at_interrupt()  # before the seconds that the imports take

from openwavlm.cli.make_shards import main

if __name__ == "__main__":
    main()

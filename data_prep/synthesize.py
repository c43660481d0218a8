"""Synthesises the embedded corpus with phone times: `python data_prep/synthesize.py --help`."""

from openwavlm.runtime.interrupt import end_at_interrupt

if __name__ == "__main__":
    end_at_interrupt()  # before the seconds that the imports take

from openwavlm.cli.synthesize import main

if __name__ == "__main__":
    main()

"""Makes a labelling of fairseq's label files: `python data_prep/import_labels.py --help`."""

from openwavlm.runtime.interrupt import end_at_interrupt

if __name__ == "__main__":
    end_at_interrupt()  # before the seconds that the imports take

from openwavlm.cli.import_labels import main

if __name__ == "__main__":
    main()

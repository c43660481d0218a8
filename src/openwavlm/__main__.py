"""`python -m openwavlm` is the program `openwavlm`."""

from openwavlm.cli.main import main

if __name__ == "__main__":
    main()

"""`python -m openwavlm` is the program `openwavlm`."""

from openwavlm.command_line import main

if __name__ == "__main__":
    main()

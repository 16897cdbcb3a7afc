"""`python -m maskfleet`: the command line."""

from maskfleet.cluster.cli.main import main

if __name__ == "__main__":
    main()

"""Runs the command line as `python -m neurotome`."""

from neurotome.cli import main

if __name__ == "__main__":
    main()

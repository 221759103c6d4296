"""`python -m kvtier`, the same as `kvtier`."""

from kvtier.cli import main

if __name__ == "__main__":
    main()

"""``python -m arelu_tl``: the command line."""

from arelu_tl.cli.app import main

if __name__ == "__main__":
    main()

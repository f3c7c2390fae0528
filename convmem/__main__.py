"""``python -m convmem``: the commands; in a checkout, the environment they need is made on first use."""

import importlib.util
import sys


def main() -> None:
    """Run the command line; in a checkout without its environment, make that first and run there."""
    if importlib.util.find_spec("convmem.bootstrap") is not None:  # not in the wheel: what is installed runs as it is
        from convmem import bootstrap

        bootstrap.enter("demo", ["-m", "convmem", *sys.argv[1:]])
    from convmem.cli import main as run

    run()


if __name__ == "__main__":
    main()

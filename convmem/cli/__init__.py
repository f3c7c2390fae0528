"""The command ``convmem``: it exists with every install and says what to install when its packages are missing."""

import sys

_PACKAGES = {"typer": "cli", "rich": "cli", "click": "cli", "uvicorn": "demo"}


def main() -> None:
    """Run the command line; exit with 2 and the line that installs what a command needs when that is missing."""
    try:
        import convmem.cli.housekeeping  # noqa: F401 - its commands join those of the app
        from convmem.cli.commands import app

        app(prog_name="convmem")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _PACKAGES:
            raise
        extra = "demo" if sys.argv[1:2] == ["demo"] else _PACKAGES[package]
        sys.stderr.write(f'convmem\'s commands need: pip install "convmem[{extra}]"\n')
        sys.exit(2)

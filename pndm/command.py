"""The installed command `pndm`, and main.py: `pndm demo` opens a page to look at, all else is `cli`'s command line."""

import sys


def command() -> None:
    """Run the command line of this process."""
    if sys.argv[1:2] == ["demo"]:
        from pndm import demo

        sys.exit(demo.main(sys.argv[2:]))
    from pndm import cli

    cli.command()

"""`python -m pndm`, the installed command by another name."""

from pndm.command import command

command()

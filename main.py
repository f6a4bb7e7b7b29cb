"""The command line: python main.py --runner sample --method F-PNDM --sample_speed 50. `pndm/cli.py` has the flags."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `command` listens, Ctrl-C ends the program without a traceback

from pndm.command import command  # noqa: E402

if __name__ == "__main__":
    command()

"""The command line: python main.py --runner sample --method F-PNDM --sample_speed 50. `pndm/cli.py` has the flags."""

from pndm.cli import command

if __name__ == "__main__":
    command()

"""Types of the command line's flags, for argparse."""

import argparse
import math


def count(text: str) -> int:
    """A whole number, not below 0."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, at least 0")
    return int(text)


def minutes(text: str) -> float:
    """A positive number of minutes."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of minutes")
    return value

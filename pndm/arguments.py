"""The flags of the command line: which runner takes them, their types for argparse, what they set in an experiment."""

import argparse
from typing import Any

from pndm.config.errors import InputError
from pndm.config.load import parse_set
from pndm.config.schema import flags

KEYS = flags()  # the flags that set a key of the experiment
# The other flags: those of every runner, then those that belong to some runners.
COMMON = {"runner", "config", "device", "set", "offline"}
OWN = {
    "image_path": "sample reproduce",
    "train_path": "train",
    "restart": "train",
    "minutes": "train",
    "timeout": "sample reproduce train search",
    "plan": "sample reproduce train fetch",
    "table": "reproduce check fetch",
    "methods": "reproduce search",
    "noises": "search",
    "time": "search",
    "search_path": "search",
    "steps": "reproduce train",
    "seeds": "reproduce",
    "flow": "reproduce",
    "cells": "reproduce",
    "out": "fid stats",
    "paths": "fid stats fetch",
}


def count(text: str) -> int:
    """A whole number, not below 0."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, at least 0")
    return int(text)


def minutes(text: str) -> float:
    """A positive number of minutes, up to two years."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of minutes, at most 1,000,000")
    return value


def overrides_of(args: argparse.Namespace) -> dict[str, tuple[str | None, Any]]:
    """What the flags set in the experiment, as `load` takes it. Raises InputError."""
    overrides: dict[str, tuple[str | None, Any]] = {}
    for item in args.set:
        target, value = parse_set(item)
        overrides[target] = ("--set", value)
    for name, value in vars(args).items():
        if value == "" or (isinstance(value, list) and "" in value):
            raise InputError("nothing is given", name)
        if value in (None, []) or name in COMMON:
            continue
        runners = KEYS[name].keys if name in KEYS else OWN[name].split()
        if args.runner not in runners:
            flag = f"--{name}" if name != "paths" else f"path {value[0]}"
            raise InputError(f"{flag} does not go with --runner {args.runner}, only with {', '.join(runners)}")
        if name in KEYS:
            overrides[KEYS[name].keys[args.runner]] = (f"--{name}", value)
        elif (name, args.runner) == ("steps", "train"):
            overrides["Train.steps"] = ("--steps", value)

    def named(target: str) -> str:
        flag = overrides[target][0]
        return target if flag in (None, "--set") else str(flag)

    # One of these on the command line replaces whichever the file has.
    chosen = {target for target, (_, value) in overrides.items() if value is not None}
    given = [target for target in ("Sample.sample_speed", "Sample.nfe", "Sample.times") if target in chosen]
    if len(given) > 1:
        raise InputError(f"{' and '.join(map(named, given))} exclude each other", *given)
    replaced: dict[str, Any] = {}
    if "Sample.solver" in chosen:
        for target in ("Sample.method", "Sample.profile", "Sample.spacing", *given):
            if target in chosen:
                raise InputError(f"{named('Sample.solver')} and {named(target)} exclude each other", target)
        replaced = {"Sample.nfe": None, "Sample.times": None, "Sample.spacing": "uniform", "Sample.profile": "exact"}
    elif given:
        replaced = dict.fromkeys(("Sample.nfe", "Sample.times", "Sample.solver"))
    elif "Sample.method" in chosen:
        replaced = {"Sample.solver": None}
    if args.runner == "reproduce":  # a table has steps, calls and methods of its own
        return overrides
    return {name: (None, value) for name, value in replaced.items()} | overrides

"""How far a run is: a bar on a terminal, elsewhere a line every half minute."""

import sys
import time

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines
# 80 columns hold the longest line. What is said beside the count of training steps has its own speed.
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{unit} {elapsed}<{remaining}"
OPEN = "{desc}: {n_fmt}{unit} {elapsed}"  # where nobody knows how much there is to do


class Progress:
    """Counts the work that all processes of a team have done; the first of them shows it.

    total: the amount of work (None: unknown), of which `initial` was done before; unit: what it is counted in; name:
    what the run does. Used as a context.
    """

    def __init__(self, team, total, unit, name, initial=0):
        self.team, self.total, self.unit, self.name, self.initial = team, total, unit, name, initial
        self.count = team.counter(f"progress {name}")
        self.expect = team.counter(f"correction {name}")  # expect(n): there are n more to do than `total`, or fewer
        self.mine, self.extra = 0, ""
        self.begun = self.told = self.said = time.monotonic()

    def __enter__(self):
        self.seen = self.team.first and sys.stderr is not None
        self.format = (OPEN if self.total is None else BAR) + (
            "{postfix}" if self.unit == " steps" else ", {rate_noinv_fmt}{postfix}"
        )
        more = {"dynamic_ncols": True, "bar_format": self.format, "disable": not (self.seen and sys.stderr.isatty())}
        self.bar = tqdm(total=self.total, initial=self.initial, unit=self.unit, desc=self.name, **more)
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.add(0, force=True)
        self.bar.close()

    def add(self, n=0, extra=None, force=False):
        """Count `n` more; `extra` is what is said beside the count. Costs nothing if called often."""
        self.mine += n
        self.extra = self.extra if extra is None else extra
        now = time.monotonic()
        if now - self.told < 0.2 and not force:
            return
        self.bar.n, self.mine, self.told = self.initial + self.count(self.mine), 0, now
        if self.total is not None:
            self.bar.total = self.total + self.expect(0)
        if not self.bar.disable:
            self.bar.set_postfix_str(self.extra, refresh=False)
            self.bar.refresh()
        elif self.seen and now - self.said > EVERY:
            self.said = now
            print(self.line(now - self.begun), file=sys.stderr, flush=True)

    def line(self, seconds, columns=0):
        """The bar as text, after `seconds`; columns: the width of the terminal, 0: no bar in it."""
        how = {"prefix": self.name, "unit": self.unit, "postfix": self.extra, "initial": self.initial}
        form = self.format if columns else self.format.replace("|{bar}|", "")
        return tqdm.format_meter(self.bar.n, self.bar.total, seconds, ncols=columns or None, bar_format=form, **how)

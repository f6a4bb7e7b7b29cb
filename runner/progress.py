"""How far a run is: a bar on a terminal, elsewhere a line every half minute."""

import sys
import time

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines


class Progress:
    """Counts the work that all processes of a team have done; the first of them shows it.

    total: the amount of work, of which `initial` was done before; unit: what it is counted in; name: what the run does.
    Used as a context.
    """

    def __init__(self, team, total, unit, name, initial=0):
        self.team, self.total, self.unit, self.name, self.initial = team, total, unit, name, initial
        self.count = team.counter(f"progress {name}")
        self.corrected = team.counter(f"correction {name}")
        self.mine, self.done, self.extra = 0, 0, ""
        self.begun = self.told = self.said = time.monotonic()

    def __enter__(self):
        quiet = not (self.team.first and sys.stderr is not None and sys.stderr.isatty())
        more = {"dynamic_ncols": True, "disable": quiet}
        self.bar = tqdm(total=self.total, initial=self.initial, unit=self.unit, desc=self.name, **more)
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.add(0, force=True)
        self.bar.close()

    def expect(self, n):
        """Add `n` to the total, negative too: the work of an adaptive method is known only when it is done."""
        self.corrected(n)

    def add(self, n=0, extra=None, force=False):
        """Count `n` more; `extra` is what is said beside the count. Costs nothing if called often."""
        self.mine += n
        self.extra = self.extra if extra is None else extra
        now = time.monotonic()
        if now - self.told < 0.2 and not force:
            return
        self.done, self.mine, self.told = self.initial + self.count(self.mine), 0, now
        self.bar.n, self.bar.total = self.done, self.total + self.corrected(0)
        if self.bar.disable:
            self._line(now)
        else:
            self.bar.set_postfix_str(self.extra, refresh=False)
            self.bar.refresh()

    def _line(self, now):
        if self.team.first and sys.stderr is not None and now - self.said > EVERY:
            self.said = now
            how = {"ncols": 0, "prefix": self.name, "unit": self.unit, "postfix": self.extra, "initial": self.initial}
            meter = tqdm.format_meter(self.done, self.bar.total, now - self.begun, **how)
            print(meter, file=sys.stderr, flush=True)

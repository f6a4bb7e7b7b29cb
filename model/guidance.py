"""Networks with a condition, and classifier-free guidance (Ho & Salimans 2022): two networks as one."""

from pndm.config.errors import InputError


class Conditional:
    """network(x, t, labels) with its labels, called like any network.

    labels: classes, int64 (n,) of the images in order, or (1,) of all of them; −1, or None for all: no class. Raises
    InputError (a ValueError) for classes that a network of this project does not know.
    """

    def __init__(self, network, labels):
        settings = getattr(getattr(network, "plain", network), "settings", None)  # `plain`: an engine's network
        known = getattr(settings, "labels", 0)
        if known and labels is not None and not bool(((labels >= -1) & (labels < known)).all()):
            raise InputError(f"labels are from 0 to {known - 1}, or -1, for a network of {known} classes")
        self.network, self.labels = network, labels
        self.broadcasts_time = getattr(network, "broadcasts_time", False)

    def __call__(self, x, t):
        return self.network(x, t, self.labels)


class Guided:
    """ε = ε_without + scale · (ε_with − ε_without); called like any network, at the cost of two calls.

    conditional, unconditional: networks called with x (n, C, H, W) and t (n,), for one network
    `Conditional(network, labels)` and `Conditional(network, None)`. scale: 1 is the conditional network, 0 the
    other, more goes beyond the condition (w = scale − 1 in the paper's Eq. (6)).
    """

    calls = 2  # network calls that one evaluation counts for

    def __init__(self, conditional, unconditional, scale):
        self.conditional, self.unconditional, self.scale = conditional, unconditional, scale
        self.broadcasts_time = all(getattr(n, "broadcasts_time", False) for n in (conditional, unconditional))

    def __call__(self, x, t):
        without = self.unconditional(x, t)
        return without + self.scale * (self.conditional(x, t) - without)

"""Classifier-free guidance (Ho & Salimans 2022): two networks, or one with and without its condition, as one."""


class Guided:
    """ε = ε_without + scale · (ε_with − ε_without); called like any network, at the cost of two calls.

    conditional, unconditional: networks called with x (n, C, H, W) and t (n,), for one network
    `lambda x, t: network(x, t, labels)` and the same with the empty label. scale: 1 is the conditional network, 0 the
    other, more goes beyond the condition (w = scale − 1 in the paper's Eq. (6)).
    """

    calls = 2  # network calls that one evaluation counts for

    def __init__(self, conditional, unconditional, scale):
        self.conditional, self.unconditional, self.scale = conditional, unconditional, scale

    def __call__(self, x, t):
        without = self.unconditional(x, t)
        return without + self.scale * (self.conditional(x, t) - without)

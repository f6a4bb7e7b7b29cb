"""Exponential moving average of a network's weights."""

import copy

from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    """`network` is the average: after step n, average = d · average + (1−d) · weights, d = min(rate, (1+n)/(10+n)).

    The smaller decay of the first steps keeps the random initial weights out of the average.
    """

    def __init__(self, network, rate):
        self.rate = rate
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    def update(self, network, step):
        """Take in the weights after step `step`, counted from 1."""
        decay = min(self.rate, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(list(self.network.parameters()), [p.detach() for p in network.parameters()], None)

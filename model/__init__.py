"""Networks: the one UNet, the published formats it can be read from, closed-form networks."""


def load_model(config, checkpoint=None, device="cpu"):
    """The network of a `Model` section, in evaluation mode on `device`: network(x, t) → ε.

    config: a `Model` section, a dict as in the YAML files (or the validated section). checkpoint: a path or a
    state dict in any format that `model.checkpoint` knows; without one the weights are random.
    Raises InputError (a ValueError) naming the key, or the first tensor that does not fit.
    """
    from model.checkpoint import read, state_dict_for
    from model.unet import UNet, settings_of

    network = UNet(settings_of(config))
    if checkpoint is not None:
        network.load_state_dict(state_dict_for(network, read(checkpoint)), assign=True)
    return network.to(device).eval().requires_grad_(False)

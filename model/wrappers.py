"""What training programs and libraries put around a network's weights."""

# Keys under which training programs keep a state dict, the best first, and what the weights are.
WRAPPERS = {
    "ema": "EMA", "ema_state_dict": "EMA", "state_dict_ema": "EMA", "model_ema": "EMA", "ema_model": "EMA",
    "model": "raw", "model_state_dict": "raw", "state_dict": "not stated",
}  # fmt: skip
# What wrappers (DataParallel, Lightning, training programs) put before every name; an average comes first.
_AVERAGES = ("ema.", "ema_model.", "model_ema.", "net_ema.", "unet_ema.")
_PREFIXES = ("module.", "model.", "net.", "network.", "unet.", "diffusion_model.", "denoiser.")


def unwrapped(tensors):
    """Tensors without the prefixes of wrappers, and whether they are an average.

    Where an average lies beside the raw weights, it alone is taken. What else a training program keeps there, such as
    the buffers of a LightningModule, is left out. torch.compile's `_orig_mod.` may stand anywhere.
    """
    tensors, averaged = {name.replace("_orig_mod.", ""): value for name, value in tensors.items()}, False
    while prefix := next((p for p in (*_AVERAGES, *_PREFIXES) if _stands_before(p, tensors)), None):
        averaged |= prefix in _AVERAGES
        tensors = {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}
    return tensors, averaged


def _stands_before(prefix, tensors):
    found = sum(name.startswith(prefix) for name in tensors)
    return found > 0 if prefix in _AVERAGES else found > len(tensors) / 2

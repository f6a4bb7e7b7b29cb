"""What the networks differ in, and how the `Model` section of an experiment says it."""

from dataclasses import dataclass

from pndm.config.errors import InputError
from pndm.config.load import model_section

ADM_HEAD = 64  # channels of an attention head in ADM


@dataclass(frozen=True)
class Settings:
    """What the published networks differ in; the defaults are those of DDIM (Ho et al.) for CIFAR10.

    attention: the levels (0 is the finest) that have it; attention_up: after "every" block on the way up or the
    "last" of the level. heads, heads_up: their number on the way down and up; head_channels, when given, sets
    the number by the channels instead. resample: "conv" (padded right and bottom), "same" (padded on all
    sides), "mean" (no convolution) or "block" (residual blocks). out_channels beyond in_channels are variances,
    which no method here uses.
    """

    in_channels: int = 3
    out_channels: int = 3
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention: tuple[int, ...] = (1,)
    attention_up: str = "every"
    heads: int = 1
    heads_up: int = 1
    head_channels: int | None = None
    dropout: float = 0.0
    cosine_first: bool = False
    frequency_shift: int = 1
    scale_shift: bool = False
    norm_eps: float = 1e-6
    narrow_groups: bool = False
    norm_groups: int = 32
    skip_rescale: bool = False
    resample: str = "conv"
    embedding: str = "sinusoidal"
    embedding_width: int = 1
    fir: bool = False
    pyramid: bool = False
    resample_shortcut: bool = True
    labels: int = 0
    labels_last: bool = False
    preconditioning: str | None = None
    sigma_data: float = 0.5


def settings_of(config):
    """The `Settings` of a `Model` section (a dict as in the YAML files, or the validated section).

    Raises InputError with the key that cannot be.
    """
    c = model_section(config)
    settings = {"iDDPM": _iddpm, "EDM": _edm}.get(c.struc, _sized)(c)
    if settings.out_channels < settings.in_channels:
        key = "Model.out_ch" if c.struc == "DDIM" else "Model.out_channels"
        raise InputError(f"{key} is {settings.out_channels}; ε of {settings.in_channels} channels needs as many", key)
    widest = 2 * settings.channels * max(settings.multipliers)
    # Narrow groups have 4 channels, until there are 32 groups.
    unit = 4 if settings.narrow_groups and widest < 132 else settings.norm_groups
    key = _widths_key(c)
    if settings.channels % unit:
        raise InputError(f"{key} is {settings.channels}; a multiple of {unit} is needed", key)
    if settings.embedding == "sinusoidal" and settings.channels // 2 <= settings.frequency_shift:
        least = 2 * settings.frequency_shift + 2
        raise InputError(f"{key} is {settings.channels}; at least {least} is needed", key)
    if c.struc == "iDDPM":
        _check_heads(settings)
    elif c.image_size % 2 ** (halvings := len(settings.multipliers) - 1):
        levels = "Model.channel_mult" if c.struc == "EDM" else "Model.ch_mult"
        message = f"Model.image_size {c.image_size} cannot be halved {halvings} times"
        raise InputError(message, "Model.image_size", levels)
    return settings


def _widths_key(c):
    """The key of a `Model` section that says the channels of the finest level."""
    name = {"DDIM": "ch", "iDDPM": "model_channels", "EDM": "model_channels"}.get(c.struc, "nf")
    return f"Model.{name}"


def _sized(c):
    """The `Settings` of DDIM, PF and PF_deep, whose sections name the size of the images."""
    if c.struc == "DDIM":
        own = {"in_channels": c.in_channels, "out_channels": c.out_ch, "channels": c.ch, "norm_groups": c.norm_groups}
    else:
        own = {"in_channels": c.num_channels, "out_channels": c.num_channels, "channels": c.nf, "attention_up": "last"}
    if c.struc == "PF_deep":
        own |= {"narrow_groups": True, "skip_rescale": c.skip_rescale, "resample": "block"}
    else:
        own["resample"] = "conv" if c.resamp_with_conv else "mean"
    return Settings(
        multipliers=tuple(c.ch_mult),
        num_res_blocks=c.num_res_blocks,
        attention=tuple(i for i in range(len(c.ch_mult)) if c.image_size // 2**i in c.attn_resolutions),
        dropout=c.dropout,
        **own,
    )


def _iddpm(c):
    return Settings(
        in_channels=c.in_channels,
        out_channels=c.out_channels,
        channels=c.model_channels,
        multipliers=tuple(c.channel_mult),
        num_res_blocks=c.num_res_blocks,
        attention=tuple(i for i in range(len(c.channel_mult)) if 2**i in c.attention_resolutions),
        heads=c.num_heads,
        heads_up=c.num_heads if c.num_heads_upsample == -1 else c.num_heads_upsample,
        dropout=c.dropout,
        cosine_first=True,
        frequency_shift=0,
        scale_shift=c.use_scale_shift_norm,
        norm_eps=1e-5,
        resample="same" if c.conv_resample else "mean",
    )


def _edm(c):
    """The `Settings` of an EDM section: DDPM++ and NCSN++ (SongUNet there), and ADM (DhariwalUNet)."""
    settings = {
        "in_channels": c.in_channels,
        "out_channels": c.in_channels,
        "channels": c.model_channels,
        "multipliers": tuple(c.channel_mult),
        "num_res_blocks": c.num_blocks,
        "attention": tuple(i for i in range(len(c.channel_mult)) if c.image_size >> i in c.attn_resolutions),
        "dropout": c.dropout,
        "narrow_groups": True,
        "resample": "block",
        "labels": c.labels,
        "preconditioning": c.preconditioning,
        "sigma_data": c.sigma_data,
    }
    if c.architecture != "ADM":
        ncsn = c.architecture == "NCSN++"
        own = {"embedding": "fourier", "embedding_width": 2, "fir": True, "pyramid": True} if ncsn else {}
        return Settings(**settings, **own, attention_up="last", skip_rescale=True)
    if c.channel_mult[0] != 1:
        raise InputError(f"Model.channel_mult is {c.channel_mult}; that of ADM begins with 1", "Model.channel_mult")
    for level in sorted({*settings["attention"], len(c.channel_mult) - 1}):
        if (width := c.model_channels * c.channel_mult[level]) % ADM_HEAD:
            said = f"the {width} channels of level {level} cannot be divided into heads of {ADM_HEAD}"
            raise InputError(f"Model.model_channels: {said}", "Model.model_channels")
    adm = {"cosine_first": True, "frequency_shift": 0, "scale_shift": True, "norm_eps": 1e-5, "labels_last": True}
    return Settings(**settings, **adm, head_channels=ADM_HEAD, resample_shortcut=False)


def _check_heads(settings):
    """Raise InputError unless the heads of attention divide the channels of every level that has it."""
    for key, heads in (("Model.num_heads", settings.heads), ("Model.num_heads_upsample", settings.heads_up)):
        for level in sorted({*settings.attention, len(settings.multipliers) - 1}):
            width = settings.channels * settings.multipliers[level]
            if heads < 1 or width % heads:
                raise InputError(f"{key} is {heads}; it must divide the {width} channels of level {level}", key)

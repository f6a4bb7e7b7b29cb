"""The `Model` section of an experiment: the keys of each published family of networks."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pndm.config.keys import BLOCKS, CHANNELS, RATE, SIDE, Section, Side, Widths, key, needed

SHAPE = "images network training"  # what the keys of a network decide


class DDIMModel(Section):
    ignored = frozenset({"var_type"})
    fixed: ClassVar[dict] = {"type": "simple"}

    struc: Literal["DDIM"] = needed("family", SHAPE)
    image_size: int = needed("height and width in pixels", SHAPE, **SIDE)
    in_channels: int = needed("colour channels", SHAPE, **CHANNELS)
    out_ch: int = needed("channels of the output", SHAPE, **CHANNELS)
    ch: int = needed("channels of the finest level, a multiple of norm_groups", SHAPE, **CHANNELS)
    ch_mult: Widths = needed("channels of each level, in units of ch", SHAPE)
    num_res_blocks: int = needed("residual blocks a level", SHAPE, **BLOCKS)
    attn_resolutions: list[Side] = needed("resolutions with attention", SHAPE)
    dropout: float = key(0.0, "dropout in the residual blocks, in training", "training", **RATE)
    resamp_with_conv: bool = key(True, "convolutions where the resolution changes", SHAPE)
    norm_groups: int = key(32, "groups of every group norm; ch must be a multiple of it", SHAPE, **CHANNELS)


class IDDPMModel(Section):
    fixed: ClassVar[dict] = {"dims": 2, "use_checkpoint": False}

    struc: Literal["iDDPM"] = needed("family", SHAPE)
    in_channels: int = needed("colour channels", SHAPE, **CHANNELS)
    model_channels: int = needed("channels of the finest level, a multiple of 32", SHAPE, **CHANNELS)
    out_channels: int = needed("channels of the output: ε, then variances, which are not used", SHAPE, **CHANNELS)
    num_res_blocks: int = needed("residual blocks a level", SHAPE, **BLOCKS)
    attention_resolutions: list[Side] = needed("downsampling rates with attention", SHAPE)
    dropout: float = key(0.0, "dropout in the residual blocks, in training", "training", **RATE)
    channel_mult: Widths = needed("channels of each level, in units of model_channels", SHAPE)
    conv_resample: bool = key(True, "convolutions where the resolution changes", SHAPE)
    use_scale_shift_norm: bool = key(False, "the embedding scales and shifts the second norm", SHAPE)
    num_heads: int = key(1, "attention heads", SHAPE, **CHANNELS)
    num_heads_upsample: int = key(-1, "attention heads on the way up; −1: num_heads", SHAPE, ge=-1, le=2**14)


class ScoreSDEModel(Section):
    """What PF and PF_deep have in common."""

    fixed: ClassVar[dict] = {"nonlinearity": "swish", "conditional": True, "centered": True}

    struc: str = needed("family", SHAPE)
    image_size: int = needed("height and width in pixels", SHAPE, **SIDE)
    num_channels: int = needed("colour channels", SHAPE, **CHANNELS)
    nf: int = needed("channels of the finest level, in PF a multiple of 32", SHAPE, **CHANNELS)
    ch_mult: Widths = needed("channels of each level, in units of nf", SHAPE)
    num_res_blocks: int = needed("residual blocks a level", SHAPE, **BLOCKS)
    attn_resolutions: list[Side] = needed("resolutions with attention", SHAPE)
    dropout: float = key(0.0, "dropout in the residual blocks, in training", "training", **RATE)


class PFModel(ScoreSDEModel):
    struc: Literal["PF"] = needed("family", SHAPE)
    resamp_with_conv: bool = key(True, "convolutions where the resolution changes", SHAPE)


class PFDeepModel(ScoreSDEModel):
    ignored = frozenset({"init_scale", "combine_method", "fir_kernel", "continuous", "fourier_scale"})
    fixed: ClassVar[dict] = ScoreSDEModel.fixed | {
        "resamp_with_conv": True,
        "resblock_type": "biggan",
        "progressive": "none",
        "progressive_input": "none",
        "embedding_type": "positional",
        "fir": False,
        "scale_by_sigma": False,
    }

    struc: Literal["PF_deep"] = needed("family", SHAPE)
    skip_rescale: bool = key(True, "residual sums divided by √2", SHAPE)


class EDMModel(Section):
    """Networks of EDM (Karras et al. 2022), which are told σ: Schedule.type must be edm."""

    struc: Literal["EDM"] = needed("family", SHAPE)
    architecture: Literal["DDPM++", "NCSN++", "ADM"] = needed("EDM's ddpmpp (files …-vp), ncsnpp (-ve) or adm", SHAPE)
    preconditioning: Literal["EDM", "VP", "VE"] = key("EDM", "how the network sees x and σ: EDM, VP or VE", SHAPE)
    sigma_data: float = key(0.5, "EDM's preconditioning: deviation of the data", SHAPE, gt=0, le=100)
    image_size: int = needed("height and width in pixels", SHAPE, **SIDE)
    in_channels: int = needed("colour channels", SHAPE, **CHANNELS)
    labels: int = key(0, "number of classes; 0: none", SHAPE, ge=0, le=10**6)
    model_channels: int = needed("what channel_mult multiplies", SHAPE, **CHANNELS)
    channel_mult: Widths = needed("channels of each level, in units of model_channels", SHAPE)
    num_blocks: int = needed("residual blocks a level", SHAPE, **BLOCKS)
    attn_resolutions: list[Side] = needed("resolutions with attention", SHAPE)
    dropout: float = key(0.0, "dropout in the residual blocks, in training", "training", **RATE)


MODELS = {"DDIM": DDIMModel, "iDDPM": IDDPMModel, "PF": PFModel, "PF_deep": PFDeepModel, "EDM": EDMModel}
ModelSection = Annotated[DDIMModel | IDDPMModel | PFModel | PFDeepModel | EDMModel, Field(discriminator="struc")]

"""The `Model` section of an experiment: the keys of each published family of networks."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pndm.config.keys import Blocks, Channels, Rate, Section, Side, Widths, key, needed, whole

SHAPE = "images network training"  # what the keys of a network decide


class DDIMModel(Section):
    ignored = frozenset({"var_type"})
    fixed: ClassVar[dict] = {"type": "simple"}

    struc: Literal["DDIM"] = needed("family", SHAPE)
    image_size: Side = needed("height and width in pixels", SHAPE)
    in_channels: Channels = needed("colour channels", SHAPE)
    out_ch: Channels = needed("channels of the output", SHAPE)
    ch: Channels = needed("channels of the finest level, a multiple of norm_groups", SHAPE)
    ch_mult: Widths = needed("channels of each level, in units of ch", SHAPE)
    num_res_blocks: Blocks = needed("residual blocks a level", SHAPE)
    attn_resolutions: list[Side] = needed("resolutions with attention", SHAPE)
    dropout: Rate = key(0.0, "dropout in the residual blocks, in training", "training")
    resamp_with_conv: bool = key(True, "convolutions where the resolution changes", SHAPE)
    norm_groups: Channels = key(32, "groups of every group norm; ch must be a multiple of it", SHAPE)


class IDDPMModel(Section):
    fixed: ClassVar[dict] = {"dims": 2, "use_checkpoint": False}

    struc: Literal["iDDPM"] = needed("family", SHAPE)
    in_channels: Channels = needed("colour channels", SHAPE)
    model_channels: Channels = needed("channels of the finest level, a multiple of 32", SHAPE)
    out_channels: Channels = needed("channels of the output: ε, then variances, which are not used", SHAPE)
    num_res_blocks: Blocks = needed("residual blocks a level", SHAPE)
    attention_resolutions: list[Side] = needed("downsampling rates with attention", SHAPE)
    dropout: Rate = key(0.0, "dropout in the residual blocks, in training", "training")
    channel_mult: Widths = needed("channels of each level, in units of model_channels", SHAPE)
    conv_resample: bool = key(True, "convolutions where the resolution changes", SHAPE)
    use_scale_shift_norm: bool = key(False, "the embedding scales and shifts the second norm", SHAPE)
    num_heads: Channels = key(1, "attention heads", SHAPE)
    num_heads_upsample: whole(-1, 2**14) = key(-1, "attention heads on the way up; −1: num_heads", SHAPE)


class PFModel(Section):
    fixed: ClassVar[dict] = {"nonlinearity": "swish", "conditional": True, "centered": True}

    struc: Literal["PF"] = needed("family", SHAPE)
    image_size: Side = needed("height and width in pixels", SHAPE)
    num_channels: Channels = needed("colour channels", SHAPE)
    nf: Channels = needed("channels of the finest level, a multiple of 32", SHAPE)
    ch_mult: Widths = needed("channels of each level, in units of nf", SHAPE)
    num_res_blocks: Blocks = needed("residual blocks a level", SHAPE)
    attn_resolutions: list[Side] = needed("resolutions with attention", SHAPE)
    dropout: Rate = key(0.0, "dropout in the residual blocks, in training", "training")
    resamp_with_conv: bool = key(True, "convolutions where the resolution changes", SHAPE)


class PFDeepModel(Section):
    ignored = frozenset({"init_scale", "combine_method", "fir_kernel", "continuous", "fourier_scale"})
    fixed: ClassVar[dict] = PFModel.fixed | {
        "resamp_with_conv": True,
        "resblock_type": "biggan",
        "progressive": "none",
        "progressive_input": "none",
        "embedding_type": "positional",
        "fir": False,
        "scale_by_sigma": False,
    }

    struc: Literal["PF_deep"] = needed("family", SHAPE)
    image_size: Side = needed("height and width in pixels", SHAPE)
    num_channels: Channels = needed("colour channels", SHAPE)
    nf: Channels = needed("channels of the finest level", SHAPE)
    ch_mult: Widths = needed("channels of each level, in units of nf", SHAPE)
    num_res_blocks: Blocks = needed("residual blocks a level", SHAPE)
    attn_resolutions: list[Side] = needed("resolutions with attention", SHAPE)
    dropout: Rate = key(0.0, "dropout in the residual blocks, in training", "training")
    skip_rescale: bool = key(True, "residual sums divided by √2", SHAPE)


MODELS = {"DDIM": DDIMModel, "iDDPM": IDDPMModel, "PF": PFModel, "PF_deep": PFDeepModel}
ModelSection = Annotated[DDIMModel | IDDPMModel | PFModel | PFDeepModel, Field(discriminator="struc")]

"""The keys of an experiment: type, range, default, meaning, and what each of them decides.

What a key decides is a few words of `DECIDES`. "Is this the same run?" is answered from them alone (`fingerprint`).
The flags of the command line are made from the same keys (`flags`): a key is declared once, here. The options of the
numerical methods are declared once in `runner/solver/options.py`.
"""

import difflib
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pndm.runner.solver.grid import SPACINGS
from pndm.runner.solver.methods import METHODS, PROFILES
from pndm.runner.solver.options import OPTIONS
from pndm.runner.solver.schedule import TYPES
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WrapValidator,
    create_model,
    model_validator,
)

PRECISIONS = ("auto", "fp32", "tf32", "bf16")
DECIDES = {
    "images": "what the images of a sampling run are",
    "distance": "what distance is measured of them",
    "network": "which network is loaded, and how it runs",
    "training": "what network a training run ends with",
}
# The runners that have a key as a flag.
METHOD, RUN, MEASURE = "sample plan train", "sample plan reproduce", "sample plan reproduce fid stats"


class Contradiction(ValueError):
    """Values that exclude each other. keys: "Section.key" of each, the most likely mistake first."""

    def __init__(self, message, *keys):
        super().__init__(message)
        self.keys = keys


def resembling(name, known):
    """ "; did you mean …?" with the name in `known` that a wrong name resembles; "" where none does."""
    close = difflib.get_close_matches(str(name), list(known), 1, 0.5)
    return f"; did you mean {close[0]}?" if close else ""


def nearest(name, known):
    """The end of a message about an unknown name: the known name that it resembles, or all known names."""
    return resembling(name, known) or f"; known are {', '.join(known)}"


def _not_a_bool(value):
    if isinstance(value, bool):
        raise ValueError("it must be a number, not yes or no")
    return value


def _one_of(known):
    """A check that a value is a name in `known`, a table that may grow while the program runs."""

    def check(name):
        if name not in known:
            raise ValueError(f"it must be one of {', '.join(known)}{resembling(name, known)}")
        return name

    return AfterValidator(check)


def _auto_or_number(value, number):
    return value if value == "auto" else number(value)


def whole(least, most):
    return Annotated[int, BeforeValidator(_not_a_bool), Field(ge=least, le=most)]


def real(**limits):
    return Annotated[float, BeforeValidator(_not_a_bool), Field(allow_inf_nan=False, **limits)]


def _split(value):
    return value.split(",") if isinstance(value, str) else value


Positive = whole(1, 10**9)
Side = whole(1, 2**13)  # pixels
Channels = whole(1, 2**14)
Widths = Annotated[list[whole(1, 64)], Field(min_length=1, max_length=12)]
Blocks = whole(1, 64)
Seed = whole(0, 2**63 - 1)
Rate = real(ge=0, lt=1)
Text = Annotated[str, Field(min_length=1)]
Times = Annotated[list[real()], BeforeValidator(_split)]
Metrics = Annotated[list[Literal["kid", "prdc"]], BeforeValidator(_split)]
Batch = Annotated[
    whole(1, 2**16), WrapValidator(_auto_or_number), PlainSerializer(lambda value: value, return_type=int | str)
]


def key(default, meaning, decides="", runners="", metavar=None):
    """A key with a default. runners: those that have it as a flag, whose value is called `metavar` in the help."""
    extra = {"decides": decides.split(), "runners": runners.split(), "metavar": metavar}
    return Field(default, description=meaning, json_schema_extra=extra)


def needed(meaning, decides=""):
    """A key without a default."""
    return key(..., meaning, decides)


class Section(BaseModel):
    """One section of an experiment.

    Released files have more keys than matter here. `ignored`: keys that no result depends on, kept as they are.
    `fixed`: keys with the only value that is possible here.
    """

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())
    ignored: ClassVar[frozenset] = frozenset()
    fixed: ClassVar[dict] = {}

    @model_validator(mode="after")
    def _known(self):
        for name, value in (self.model_extra or {}).items():
            if name in self.fixed:
                if value != self.fixed[name]:
                    raise Contradiction(f"{name} is {value!r}; only {self.fixed[name]!r} is possible here", name)
            elif name not in self.ignored:
                known = [*type(self).model_fields, *self.fixed, *self.ignored]
                raise Contradiction(f"unknown key {name}{nearest(name, known)}", name)
        return self


class ScheduleSection(Section):
    ignored = frozenset(
        {"learn_sigma", "sigma_small", "rescale_timesteps", "rescale_learned_sigmas", "timestep_respacing"}
    )
    fixed: ClassVar[dict] = {"predict_xstart": False, "use_kl": False}

    type: Literal[TYPES] = key("linear", "how β grows with t", "images training")
    beta_start: real(gt=1e-12, lt=1) = key(1e-4, "β at the first training step (linear, quad)", "images training")
    beta_end: real(gt=1e-12, lt=1) = key(0.02, "β at the last training step (linear, quad)", "images training")
    diffusion_step: whole(1, 10**5) = key(1000, "number of training steps", "images training")
    noise_schedule: Literal[TYPES] | None = key(None, "released iDDPM file: repeats `type`")

    @model_validator(mode="after")
    def _consistent(self):
        if self.beta_start > self.beta_end:
            raise Contradiction(f"beta_start {self.beta_start} is above beta_end {self.beta_end}", "beta_start")
        if self.noise_schedule not in (None, self.type):
            raise Contradiction(
                f"noise_schedule {self.noise_schedule!r} contradicts type {self.type!r}", "noise_schedule"
            )
        return self


class DatasetSection(Section):
    dataset: Literal["DIGITS", "CIFAR10", "CELEBA", "LSUN", "FFHQ", "FOLDER"] = needed(
        "which images", "distance training"
    )
    category: Text | None = key(None, "LSUN: bedroom, church_outdoor, …", "distance training")
    path: Text | None = key(None, "folder of the files; default temp/dataset/NAME", "distance")
    image_size: Side = needed("height and width in pixels", "images distance training")
    channels: Literal[1, 3] = needed("colour channels", "images distance training")
    batch_size: whole(1, 2**20) = key(
        64, "images in a training batch, of all processes together", "training", "train", "B"
    )
    random_flip: bool = key(False, "training: mirror half of the images", "training")
    rescaled: bool = key(True, "the network sees [−1, 1], not [0, 1]", "images training")
    logit_transform: bool = key(False, "the network sees logits of [0, 1]", "images training")
    uniform_dequantization: bool = key(False, "training: add uniform noise of one grey level", "training")
    gaussian_dequantization: bool = key(False, "training: add normal noise of deviation 0.01", "training")
    num_workers: whole(0, 1024) = key(0, "processes that read training images")

    @model_validator(mode="after")
    def _consistent(self):
        if self.rescaled and self.logit_transform:
            raise Contradiction("rescaled and logit_transform exclude each other", "logit_transform", "rescaled")
        return self


SHAPE = "images network training"  # what the keys of a network decide


class DDIMModel(Section):
    ignored = frozenset({"var_type"})
    fixed: ClassVar[dict] = {"type": "simple"}

    struc: Literal["DDIM"] = needed("family", SHAPE)
    image_size: Side = needed("height and width in pixels", SHAPE)
    in_channels: Channels = needed("colour channels", SHAPE)
    out_ch: Channels = needed("channels of the output", SHAPE)
    ch: Channels = needed("channels of the finest level, a multiple of 32", SHAPE)
    ch_mult: Widths = needed("channels of each level, in units of ch", SHAPE)
    num_res_blocks: Blocks = needed("residual blocks a level", SHAPE)
    attn_resolutions: list[Side] = needed("resolutions with attention", SHAPE)
    dropout: Rate = key(0.0, "dropout in the residual blocks, in training", "training")
    resamp_with_conv: bool = key(True, "convolutions where the resolution changes", SHAPE)


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


class TrainSection(Section):
    epoch: Positive = key(1000, "passes over the dataset")
    loss_type: Literal["linear", "square"] = key(
        "square", "|ε − ε_θ| (linear) or its square, summed over the image", "training"
    )
    ema: bool = key(True, "keep an exponential moving average of the weights", "training")
    ema_rate: Rate = key(0.999, "its decay a step; less in the first steps, (1+n)/(10+n)", "training")
    precision: Literal["fp32", "bf16"] = key(
        "fp32", "bf16: the network computes in bfloat16, weights stay float32", "training"
    )
    micro_batch: Positive | None = key(None, "images a process runs at once; the rest of the batch accumulates")
    warmup: whole(0, 10**9) = key(0, "steps over which the learning rate rises to lr", "training")
    seed: Seed = key(0, "seed of weights, order, times, noise and dropout", "training", "train", "S")
    log_interval: Positive = key(50, "steps between scalars")
    sample_interval: Positive = key(2000, "steps between sample grids")
    distance_num: whole(0, 10**8) = key(0, "images of the distance measured at each sample grid; 0: none")
    checkpoint_interval: Positive = key(2000, "steps between checkpoints")


class OptimSection(Section):
    optimizer: Literal["adam", "sgd"] = key("adam", "torch.optim's; sgd has momentum 0.9", "training")
    lr: real(gt=0) = key(2e-4, "learning rate", "training")
    beta1: Rate = key(0.9, "Adam's first decay; the second is 0.999", "training")
    eps: real(gt=0) = key(1e-8, "Adam's ε", "training")
    amsgrad: bool = key(False, "Adam's AMSGrad variant", "training")
    weight_decay: real(ge=0) = key(0.0, "L2 penalty", "training")
    grad_clip: real(gt=0) | None = key(None, "largest norm of the gradient", "training")


class _Sampling(Section):
    ignored = frozenset({"mpi4py"})
    fixed: ClassVar[dict] = {"last_only": True}

    method: Annotated[str, _one_of(METHODS)] = key(
        "F-PNDM", f"numerical method: {', '.join(METHODS)}", "images", METHOD, "M"
    )
    sample_speed: whole(1, 10**5) = key(50, "number of steps", "", METHOD, "N")
    nfe: whole(1, 10**6) | None = key(None, "network calls an image, exactly; instead of sample_speed", "", METHOD, "N")
    spacing: Annotated[str, _one_of(SPACINGS)] = key(
        "uniform", f"spacing of the times: {', '.join(SPACINGS)}", "images", METHOD, "S"
    )
    times: Times | None = key(
        None,
        "the falling times themselves, instead of sample_speed and spacing; a last −1 is clean data",
        "images",
        METHOD,
        "T,…",
    )
    profile: Literal[PROFILES] = key(
        "exact", "exact: what the paper says; published: the released code with its quirks", "images", METHOD, "P"
    )
    seed: Seed = key(0, "seed of the noise of every image", "images", "sample plan", "S")
    total_num: whole(1, 10**8) = key(1000, "number of images", "distance", RUN, "K")
    batch_size: Batch = key(128, "images a network call; auto: what the memory takes", "images", RUN, "B")
    precision: Literal[PRECISIONS] = key(
        "auto", "of the network: fp32, tf32, bf16; auto: bf16 where it is fast", "network", RUN, "P"
    )
    compile: bool = key(False, "compile the network: half a minute, then faster", "images network", RUN)
    keep: whole(0, 10**8) | None = key(None, "images left as files, the first K; all by default", "", RUN, "K")
    model_path: Text | None = key(None, "checkpoint to sample from", "network", RUN, "F")
    features: Text = key(
        "none", "features of the Fréchet distance, or none; inception gives FID", "distance", MEASURE, "F"
    )
    metrics: Metrics = key(
        [], "distances beside it: kid, prdc, or kid,prdc; they keep features in memory", "distance",
        "sample reproduce fid", "M",
    )  # fmt: skip
    statistics: Text | None = key(
        None, "statistics file to measure against; the dataset by default", "distance", "sample reproduce", "FILE"
    )
    inception_path: Text | None = key(
        None, "pytorch-fid's Inception weights; the hub's cache by default", "", MEASURE, "FILE"
    )


def _option(option):
    """The key of a method's option."""
    kind = bool if option.type is bool else real(**option.limits)
    if option.default is None:
        kind = kind | None
    return kind, key(option.default, option.meaning, "images", METHOD, None if option.type is bool else "X")


SampleSection = create_model(
    "SampleSection", __base__=_Sampling, **{name: _option(option) for name, option in OPTIONS.items()}
)


class Experiment(Section):
    """A whole experiment, validated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    Schedule: ScheduleSection
    Dataset: DatasetSection
    Model: ModelSection
    Train: TrainSection = TrainSection()
    Optim: OptimSection = OptimSection()
    Sample: SampleSection = SampleSection()

    @model_validator(mode="after")
    def _consistent(self):
        model, data, sample = self.Model, self.Dataset, self.Sample
        size = getattr(model, "image_size", data.image_size)
        if size != data.image_size:
            raise Contradiction(
                f"Model.image_size {size} is not Dataset.image_size {data.image_size}",
                "Model.image_size", "Dataset.image_size",
            )  # fmt: skip
        name = "in_channels" if hasattr(model, "in_channels") else "num_channels"
        if getattr(model, name) != data.channels:
            raise Contradiction(
                f"Model.{name} {getattr(model, name)} is not Dataset.channels {data.channels}",
                f"Model.{name}", "Dataset.channels",
            )  # fmt: skip
        if sample.sample_speed > self.Schedule.diffusion_step:
            raise Contradiction(
                f"Sample.sample_speed {sample.sample_speed} is above Schedule.diffusion_step "
                f"{self.Schedule.diffusion_step}",
                "Sample.sample_speed", "Schedule.diffusion_step",
            )  # fmt: skip
        halvings = len(getattr(model, "channel_mult", [1])) - 1  # of a model that does not know its image size
        if data.image_size % 2**halvings:
            raise Contradiction(
                f"Dataset.image_size {data.image_size} cannot be halved {halvings} times",
                "Dataset.image_size", "Model.channel_mult",
            )  # fmt: skip
        if (sample.clip or sample.threshold is not None) and not data.rescaled:
            raise Contradiction(
                "Sample.clip and Sample.threshold need images in [−1, 1], so Dataset.rescaled",
                "Sample.clip", "Sample.threshold", "Dataset.rescaled",
            )  # fmt: skip
        return self


def keys(experiment=None):
    """("Section.key", its field) of every key; of an experiment, the keys of its own kind of network."""
    for name, section in Experiment.model_fields.items():
        if experiment is not None:
            kinds = [type(getattr(experiment, name))]
        else:
            kinds = MODELS.values() if name == "Model" else [section.annotation]
        for kind in kinds:
            for inner, item in kind.model_fields.items():
                yield f"{name}.{inner}", item


def fingerprint(experiment, *words) -> dict[str, Any]:
    """The values that decide something: "Section.key" → value, of all keys that decide any of `words` (`DECIDES`).

    Two experiments with equal fingerprints are the same run as far as these words go.
    """
    found = {}
    for name, item in keys(experiment):
        if set(words) & set(item.json_schema_extra["decides"]):
            section, inner = name.split(".")
            found[name] = getattr(getattr(experiment, section), inner)
    return found


def difference(held, wanted):
    """The first difference of two fingerprints in words, "" where there is none.

    A key that one of them lacks counts as its default, so that a new key leaves old records valid.
    """
    defaults = {name: item.default for name, item in keys()}
    for name in [*wanted, *held]:
        theirs, ours = held.get(name, defaults.get(name)), wanted.get(name, defaults.get(name))
        if theirs != ours:
            return f"{name} is {_short(theirs)} there and {_short(ours)} here"
    return ""


def _short(value):
    """A value for a message; of a hash the beginning."""
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else value


@dataclass
class Flag:
    """A flag of the command line. keys: runner → the key that it sets."""

    name: str
    metavar: str | None
    switch: bool
    meanings: dict = field(default_factory=dict)
    keys: dict = field(default_factory=dict)

    @property
    def help(self):
        """What the flag means; where it depends on the runner, for each of them."""
        if len(self.meanings) == 1:
            return next(iter(self.meanings.values()))
        return "; ".join(f"{runners}: {meaning}" for runners, meaning in self.meanings.items())


def flags():
    """The flags that set a key, by name. One flag may set different keys for different runners."""
    found = {}
    for name, item in keys():
        if runners := item.json_schema_extra["runners"]:
            inner = name.split(".")[1]
            flag = found.setdefault(inner, Flag(inner, item.json_schema_extra["metavar"], item.annotation is bool))
            flag.meanings[", ".join(runners)] = item.description
            flag.keys |= dict.fromkeys(runners, name)
    return found

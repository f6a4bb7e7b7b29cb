"""The keys of an experiment: type, range, default, meaning, and what each of them decides.

What a key decides is a few words of `keys.key`. "Is this the same run?" is answered from them alone
(`fingerprint`). The flags of the command line are made from the same keys (`flags`): a key is declared once, here. The
options of the numerical methods are declared once in `runner/solver/options.py`.
"""

from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, create_model, model_validator

from pndm.config.keys import (
    CALLS,
    POSITIVE,
    RATE,
    SEED,
    SIDE,
    STEPS,
    TEXT,
    Contradiction,
    Count,
    Metrics,
    Place,
    Section,
    Times,
    key,
    needed,
)
from pndm.config.networks import MODELS, ModelSection
from pndm.runner.solver.grid import SPACINGS
from pndm.runner.solver.methods import METHODS
from pndm.runner.solver.options import GRID_OPTIONS, OPTIONS
from pndm.runner.solver.published import PROFILES
from pndm.runner.solver.schedule import TYPES

SPLITS = ("train", "test")
OF_A_NETWORK = ("Schedule", "Dataset", "Model")  # sections that a network is trained by, and its file keeps
PRECISIONS = ("auto", "fp32", "tf32", "bf16")
# The runners that have a key as a flag.
METHOD, RUN, NEED = "sample plan train", "sample plan reproduce", "sample plan reproduce check fetch"
MEASURE = f"{NEED} fid stats"


class ScheduleSection(Section):
    ignored = frozenset(
        {"learn_sigma", "sigma_small", "rescale_timesteps", "rescale_learned_sigmas", "timestep_respacing"}
    )
    fixed: ClassVar[dict] = {"predict_xstart": False, "use_kl": False}

    type: str = key("linear", "how β grows with t; edm: by EDM's σ", "images network training", among=(*TYPES, "edm"))
    beta_start: float = key(
        1e-4, "β at the first training step (linear, quad)", "images network training", gt=1e-12, lt=1
    )
    beta_end: float = key(0.02, "β at the last training step (linear, quad)", "images network training", gt=1e-12, lt=1)
    diffusion_step: int = key(1000, "number of training steps", "images network training", **STEPS)
    sigma_min: float = key(0.002, "edm: σ at the first training step", "images network training", ge=1e-6, le=1e6)
    sigma_max: float = key(80.0, "edm: σ at the last training step", "images network training", ge=1e-6, le=1e6)
    noise_schedule: str | None = key(None, "released iDDPM file: repeats `type`", among=TYPES)

    @model_validator(mode="after")
    def _consistent(self):
        if self.beta_start > self.beta_end:
            raise Contradiction(f"beta_start {self.beta_start} is above beta_end {self.beta_end}", "beta_start")
        if self.sigma_min >= self.sigma_max:
            raise Contradiction(f"sigma_min {self.sigma_min} is not below sigma_max {self.sigma_max}", "sigma_min")
        if self.noise_schedule not in (None, self.type):
            message = f"noise_schedule {self.noise_schedule!r} contradicts type {self.type!r}"
            raise Contradiction(message, "noise_schedule")
        return self


class DatasetSection(Section):
    dataset: Literal["DIGITS", "FASHION", "CIFAR10", "CELEBA", "LSUN", "FFHQ", "FOLDER"] = needed(
        "which images", "distance training"
    )
    category: str | None = key(None, "LSUN: bedroom, church_outdoor, …", "distance training", **TEXT)
    split: str = key("train", "which of its images; test: CIFAR10 and FASHION", "distance training", among=SPLITS)
    path: Place | None = key(None, "folder of the files; default temp/dataset/NAME", "distance")
    image_size: int = needed("height and width in pixels", "images distance training", **SIDE)
    channels: Literal[1, 3] = needed("colour channels", "images distance training")
    batch_size: int = key(
        64, "images in a training batch, of all processes together", "training", "train", "B", ge=1, le=2**20
    )
    random_flip: bool = key(False, "training: mirror half of the images", "training")
    rescaled: bool = key(True, "the network sees [−1, 1], not [0, 1]", "images network training")
    logit_transform: bool = key(False, "the network sees logits of [0, 1]", "images network training")
    uniform_dequantization: bool = key(False, "training: add uniform noise of one grey level", "training")
    gaussian_dequantization: bool = key(False, "training: add normal noise of deviation 0.01", "training")
    num_workers: int = key(0, "processes that read training images", ge=0, le=1024)

    @property
    def shape(self):
        """(C, H, W) of an image."""
        return self.channels, self.image_size, self.image_size

    @model_validator(mode="after")
    def _consistent(self):
        if self.rescaled and self.logit_transform:
            raise Contradiction("rescaled and logit_transform exclude each other", "logit_transform", "rescaled")
        if self.logit_transform and self.gaussian_dequantization:
            message = "gaussian_dequantization leaves [0, 1], outside which logit_transform is not defined"
            raise Contradiction(message, "gaussian_dequantization", "logit_transform")
        if self.split != "train" and self.dataset not in ("CIFAR10", "FASHION"):
            raise Contradiction(f"split {self.split}: only CIFAR10 and FASHION have one", "split")
        return self


class TrainSection(Section):
    epoch: int = key(1000, "passes over the dataset", **POSITIVE)
    steps: int | None = key(None, "number of steps, instead of epoch", **POSITIVE)
    start: Place | None = key(None, "checkpoint whose weights the network begins with; none: random ones", "training")
    loss_type: Literal["linear", "square"] = key(
        "square", "|ε − ε_θ| (linear) or its square, summed over the image", "training"
    )
    ema: bool = key(True, "keep an exponential moving average of the weights", "training")
    ema_rate: float = key(0.999, "its decay a step; less in the first steps, (1+n)/(10+n)", "training", **RATE)
    loss_weight: float = key(
        1.0, "γ: time t weighs min(1/ᾱ_t, γ) in the loss; 1: all times weigh the same", "training", ge=1
    )
    precision: str = key(
        "auto",
        "of the network, whose weights stay float32: fp32, tf32, bf16; auto: bf16 where it is fast",
        among=PRECISIONS,
    )
    compile: bool = key(False, "compile the network: a minute, then faster on GPUs")
    micro_batch: int | None = key(None, "images a process runs at once; the rest of the batch accumulates", **POSITIVE)
    warmup: int = key(0, "steps over which the learning rate rises to lr", "training", ge=0, le=10**9)
    seed: int = key(0, "seed of weights, order, times, noise and dropout", "training", "train", "S", **SEED)
    log_interval: int = key(50, "steps between scalars", **POSITIVE)
    sample_interval: int = key(2000, "steps between sample grids", **POSITIVE)
    distance_num: int = key(0, "images of the distance measured at each sample grid; 0: none", ge=0, le=10**8)
    checkpoint_interval: int = key(2000, "steps between checkpoints", **POSITIVE)


class OptimSection(Section):
    optimizer: Literal["adam", "sgd"] = key("adam", "torch.optim's; sgd has momentum 0.9", "training")
    lr: float = key(2e-4, "learning rate", "training", gt=0)
    beta1: float = key(0.9, "Adam's first decay; the second is 0.999", "training", **RATE)
    eps: float = key(1e-8, "Adam's ε", "training", gt=0)
    amsgrad: bool = key(False, "Adam's AMSGrad variant", "training")
    weight_decay: float = key(0.0, "L2 penalty", "training", ge=0)
    decay: float = key(
        0.0, "share of the training, at its end, over which the learning rate falls to 0 linearly", ge=0, le=1
    )
    grad_clip: float | None = key(None, "largest norm of the gradient", "training", gt=0)


class _Sampling(Section):
    ignored = frozenset({"mpi4py"})
    fixed: ClassVar[dict] = {"last_only": True}

    method: str = key("F-PNDM", f"numerical method: {', '.join(METHODS)}", "images", METHOD, "M", among=METHODS)
    sample_speed: int = key(50, "number of steps", "", METHOD, "N", **STEPS)
    nfe: int | None = key(
        None, "network calls an image, exactly; instead of sample_speed", "", f"{METHOD} search", "N", **CALLS
    )
    spacing: str = key("uniform", f"spacing of the times: {', '.join(SPACINGS)}", "images", METHOD, "S", among=SPACINGS)
    times: Times | None = key(
        None,
        "the falling times themselves, instead of sample_speed and spacing; a last −1 is clean data",
        "images",
        METHOD,
        "T,…",
    )
    label: int | None = key(
        None, "class of all images; by default each has a random class of its own", "images", METHOD, "C", ge=0
    )
    guidance: float = key(
        1.0,
        "classifier-free guidance: ε without class + this × the difference; not 1: two calls for one",
        "images",
        METHOD,
        "W",
        ge=0,
        le=1000,
    )
    solver: Place | None = key(
        None,
        "solver file of --runner search, a path or of config/solvers, instead of method and steps",
        "",
        "sample plan",
        "FILE",
    )
    any_network: bool = key(False, "take the solver file though it was searched on another network", "", "sample plan")
    profile: str = key(
        "exact",
        "exact: what the paper says; published: the released code with its quirks",
        "images",
        METHOD,
        "P",
        among=PROFILES,
    )
    seed: int = key(0, "seed of the noise of every image", "images", "sample plan search", "S", **SEED)
    total_num: int = key(1000, "number of images", "distance", f"{RUN} search", "K", ge=1, le=10**8)
    batch_size: Count | Literal["auto"] = key(
        128, "images a network call; auto (sample, search): what the memory takes", "images", f"{RUN} search", "B"
    )
    precision: str = key(
        "auto", "of the network: fp32, tf32, bf16; auto: bf16 where it is fast", "network", RUN, "P", among=PRECISIONS
    )
    compile: bool = key(False, "compile the network: one to three minutes, then faster", "images network", RUN)
    keep: int | None = key(None, "images left as files, the first K; all by default", "", RUN, "K", ge=0, le=10**8)
    model_path: Place | None = key(
        None, "checkpoint to sample from: a path, a published name, a name on the hub", "network", f"{NEED} search", "F"
    )
    features: str = key(
        "none", "features of the Fréchet distance, or none; inception gives FID", "distance", MEASURE, "F", **TEXT
    )
    metrics: Metrics = key(
        [],
        "distances beside it: kid, prdc, or kid,prdc; they keep features in memory",
        "distance",
        "sample reproduce fid",
        "M",
    )
    statistics: Place = key(
        "dataset",
        "what to measure against: a statistics file or its published name, or dataset, its images",
        "distance",
        "sample reproduce check fetch",
        "FILE",
    )
    inception_path: Place | None = key(None, "pytorch-fid's Inception weights; fetched by default", "", MEASURE, "FILE")


def _option(option):
    """The key of a method's option."""
    kind = option.type if option.default is not None else option.type | None
    metavar = None if option.type is bool else "X"
    return kind, key(option.default, option.meaning, "images", METHOD, metavar, **option.limits)


SampleSection: Any = create_model(
    "SampleSection", __base__=_Sampling, **{name: _option(option) for name, option in (GRID_OPTIONS | OPTIONS).items()}
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
        channels = "in_channels" if hasattr(model, "in_channels") else "num_channels"
        for ours, theirs in (("image_size", "image_size"), (channels, "channels")):
            value, wanted = getattr(model, ours, None), getattr(data, theirs)
            if value not in (None, wanted):
                message = f"Model.{ours} {value} is not Dataset.{theirs} {wanted}"
                raise Contradiction(message, f"Model.{ours}", f"Dataset.{theirs}")
        counted = not (sample.nfe or sample.times or sample.solver or METHODS[sample.method].adaptive)
        if counted and (steps := sample.sample_speed) > (total := self.Schedule.diffusion_step):
            message = f"Sample.sample_speed {steps} is above Schedule.diffusion_step {total}"
            raise Contradiction(message, "Sample.sample_speed", "Schedule.diffusion_step")
        halvings = len(getattr(model, "channel_mult", [1])) - 1  # of a model that does not know its image size
        if data.image_size % 2**halvings:
            message = f"Dataset.image_size {data.image_size} cannot be halved {halvings} times"
            raise Contradiction(message, "Dataset.image_size", "Model.channel_mult")
        if model.struc == "EDM" and self.Schedule.type != "edm":
            message = f"Schedule.type is {self.Schedule.type!r}; networks of EDM are told σ and need edm"
            raise Contradiction(message, "Schedule.type", "Model.struc")
        classes = getattr(model, "labels", 0)
        if (sample.label is not None and sample.label >= classes) or (sample.guidance != 1 and not classes):
            what, given = ("guidance", sample.guidance) if sample.label is None else ("label", sample.label)
            known = f"classes 0 to {classes - 1}" if classes else "no classes"
            message = f"Sample.{what} is {given}; the network knows {known}"
            raise Contradiction(message, f"Sample.{what}", "Model.labels")
        if (sample.clip or sample.threshold is not None) and not data.rescaled:
            message = "Sample.clip and Sample.threshold need images in [−1, 1], so Dataset.rescaled"
            raise Contradiction(message, "Sample.clip", "Sample.threshold", "Dataset.rescaled")
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
    """The values that decide something: "Section.key" → value, of all keys that decide any of `words` (`key`).

    Two experiments with equal fingerprints are the same run as far as these words go.
    """
    deciding = [name for name, item in keys(experiment) if set(words) & set(item.json_schema_extra["decides"])]
    return {name: attrgetter(name)(experiment) for name in deciding}


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
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 and value.isalnum() else value


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

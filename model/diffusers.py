"""The folders of diffusers that hold a `UNet2DModel`, on the disk or on the hub."""

import re
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pndm.config import published
from pndm.config.errors import InputError, first_line
from pndm.config.files import load_json
from pndm.model.schedulers import FLOWS, check_class, translated
from pndm.model.settings import Settings
from pndm.runner.solver.schedule import Schedule, betas_of

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
PLACES = ("", "unet_ema/", "unet/")  # of a model in its folder or in a pipeline's, the best first
INDEX = "diffusion_pytorch_model.safetensors.index.json"  # of weights that are cut into several files
VARIANTS = ("", ".fp16", ".bf16", ".non_ema")  # part of the names, as `save_pretrained(variant=…)` writes them
EMA_STATE = {  # what EMAModel.save_pretrained adds to config.json
    "decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power",
}  # fmt: skip
# What is taken from the hub: of the best place that has weights, the first group whose first name is there.
DOWNLOADS = (
    (WEIGHTS[0],),
    (INDEX, "diffusion_pytorch_model-*-of-*.safetensors"),
    ("diffusion_pytorch_model.fp16.safetensors",),
    (WEIGHTS[1],),
)
SCHEDULERS = ("scheduler_config.json", "scheduler/scheduler_config.json")
BETAS = {"linear": "linear", "scaled_linear": "quad", "squaredcos_cap_v2": "cosine"}  # diffusers' name → `Schedule`'s
CAPPED = ("exp", "laplace")  # diffusers' other schedules by ᾱ; β is at most 0.999
BETA_SCHEDULES = (*BETAS, *CAPPED, "sigmoid")
NOTHING_LEFT = 1e-16  # ᾱ in place of 0, which no λ belongs to
Positive = Annotated[int, Field(ge=1, le=10**6)]
Down = Literal["DownBlock2D", "AttnDownBlock2D"]
Up = Literal["UpBlock2D", "AttnUpBlock2D"]


class Config(BaseModel):
    """config.json: which values the one UNet can do, and diffusers' own defaults for keys that are left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sample_size: int | list[int] | None = None
    in_channels: Positive = 3
    out_channels: Positive = 3
    center_input_sample: Literal[False] = False
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: Positive | None = None
    freq_shift: Literal[0, 1] = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[Down, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    up_block_types: tuple[Up, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[Positive, ...] = (224, 448, 672, 896)
    layers_per_block: Positive = 2
    mid_block_scale_factor: Literal[1] = 1
    downsample_padding: Literal[0, 1] = 1
    downsample_type: Literal["conv"] = "conv"
    upsample_type: Literal["conv"] = "conv"
    dropout: float = 0.0
    act_fn: Literal["silu", "swish"] = "silu"
    attention_head_dim: Positive | None = 8
    norm_num_groups: Positive = 32
    attn_norm_num_groups: Positive | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    add_attention: Literal[True] = True
    class_embed_type: None = None
    num_class_embeds: None = None
    num_train_timesteps: int | None = None


class Noise(BaseModel):
    """scheduler_config.json: what it says of training; how a scheduler samples is no concern of the methods here."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    num_train_timesteps: Positive = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "exp", "laplace", "sigmoid"] = "linear"
    trained_betas: list[float] | None = None
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    rescale_betas_zero_snr: Literal[False] = False
    snr_shift_scale: Literal[1] = 1
    use_flow_sigmas: Literal[False] = False
    timestep_type: Literal["discrete"] = "discrete"


class Training(NamedTuple):
    """How a network was trained: arguments of `Schedule`, what it predicts, (height, width) in pixels if stated."""

    schedule: dict
    prediction: str
    size: tuple | None

    @property
    def noise(self):
        """The `Schedule`."""
        return Schedule(**self.schedule)


def training_of(weights):
    """The `Training` of a weights file, by its folder or pipeline; None where no scheduler_config.json belongs to it.

    Raises InputError naming what cannot be read.
    """
    places = [weights.parent / name for name in SCHEDULERS] + [weights.parent.parent / SCHEDULERS[1]]
    path = next((path for path in places if path.is_file()), None)
    if path is None or not weights.with_name("config.json").is_file():
        return None
    found = translated(_object(path))
    if (kind := str(found.get("_class_name", "MethodScheduler"))) != "MethodScheduler":
        try:
            check_class(kind)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    if kind in FLOWS:
        raise InputError(f"{path}: a network of {kind} learned flow matching; MethodScheduler samples with it")
    noise = _validated(Noise, found, path, "the methods")
    size = _size_of(weights.with_name("config.json"))
    schedule = schedule_of(noise.beta_schedule, noise.beta_start, noise.beta_end, noise.num_train_timesteps)
    if noise.trained_betas is not None:
        schedule = {"betas": noise.trained_betas}
    training = Training(schedule, noise.prediction_type, size)
    try:
        training.noise  # noqa: B018 (what it raises)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return training


def _size_of(path):
    """(height, width) of a config.json; None where it says none. Raises InputError."""
    size = _object(path).get("sample_size")
    sides = size if isinstance(size, list) else [size, size]
    if size is not None and (len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides)):
        raise InputError(f"{path}: sample_size is {size!r}; it must be one or two whole numbers from 1")
    return None if size is None else tuple(sides)


def schedule_of(name, start, end, count):
    """Arguments of `Schedule` for a name in `BETA_SCHEDULES`, from β `start` to `end` in `count` training steps."""
    if name in BETAS:
        return {"type": BETAS[name], "beta_start": start, "beta_end": end, "diffusion_step": count}
    if name == "sigmoid":  # GeoDiff
        return {"betas": start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, count)))}
    tau = np.arange(count + 1) / count
    if name == "exp":
        alpha = np.exp(-12 * tau)
    else:  # Hang & Gu 2024, arXiv:2407.03297; as diffusers has it, with √ in the place of ᾱ
        snr = (1 - 2 * np.abs(0.5 - tau) + 1e-6) ** (-0.5 * np.copysign(1, 0.5 - tau))
        alpha = np.sqrt(snr / (1 + snr))
    return {"betas": np.minimum(1 - alpha[1:] / alpha[:-1], 0.999)}


def without_signal(alphas_cumprod):
    """β of the ᾱ (N,) that are shifted and scaled in √ᾱ so that the last is 0: Lin et al. 2024, algorithm 1.

    It is 1e-16 here, so that λ is finite.
    """
    root = np.sqrt(alphas_cumprod)
    alpha = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    alpha[-1] = NOTHING_LEFT
    return betas_of(alpha)


def _object(path):
    """The JSON object in a file. Raises InputError."""
    try:
        return load_json(path)
    except ValueError:
        raise InputError(f"{path}: not a JSON object") from None


def _validated(model, tree, path, who):
    """`tree`, what a file holds, as a `model`. Raises InputError naming the first key that `who` cannot do."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = first["loc"][0]
        problem = "is an unknown setting" if first["type"] == "extra_forbidden" else f"is {tree[key]!r}"
        raise InputError(f"{path}: {key} {problem}; {who} cannot do that") from None


def settings_of(path):
    """The `Settings` of a config.json. Raises InputError naming the first feature that the one UNet does not have."""
    tree = _object(path)
    if (kind := tree.get("_class_name")) != "UNet2DModel":
        raise InputError(f"{path}: _class_name is {kind!r}, only 'UNet2DModel' can be read")
    tree = {key: value for key, value in tree.items() if not (key.startswith("_") or key in EMA_STATE)}
    c = _validated(Config, tree, path, "the UNet")

    def refuse(key, why):
        raise InputError(f"{path}: {key} is {getattr(c, key)!r}; {why}")

    levels = len(c.block_out_channels)
    attention = tuple(i for i, kind in enumerate(c.down_block_types) if kind == "AttnDownBlock2D")
    mirrored = tuple(i for i, kind in enumerate(reversed(c.up_block_types)) if kind == "AttnUpBlock2D")
    if not 0 < levels == len(c.down_block_types) == len(c.up_block_types):
        refuse("block_out_channels", "down_block_types and up_block_types must be as many")
    channels = c.block_out_channels[0]
    if mirrored != attention:
        refuse("up_block_types", "the UNet has attention at the same levels down and up")
    if channels % c.norm_num_groups or any(width % channels for width in c.block_out_channels):
        refuse("block_out_channels", f"the UNet needs a multiple of {c.norm_num_groups} first, and multiples of it")
    if c.time_embedding_dim not in (None, 4 * channels):
        refuse("time_embedding_dim", f"the UNet has 4 × {channels}")
    if c.resnet_time_scale_shift == "scale_shift" and c.attn_norm_num_groups is None:
        refuse("attn_norm_num_groups", "with scale_shift the middle attention has no norm, the UNet has one everywhere")
    if c.attn_norm_num_groups not in (None, c.norm_num_groups):
        refuse("attn_norm_num_groups", f"the UNet has norm_num_groups everywhere, {c.norm_num_groups}")

    # One number of heads where the levels agree on it, so that equal networks have equal settings.
    widths = {c.block_out_channels[i] for i in (*attention, levels - 1)}
    heads = {width // (c.attention_head_dim or width) for width in widths}
    if any(width % (c.attention_head_dim or width) for width in widths):
        refuse("attention_head_dim", f"it must divide {', '.join(map(str, sorted(widths)))}")
    same = heads.pop() if len(heads) == 1 else None
    return Settings(
        in_channels=c.in_channels,
        out_channels=c.out_channels,
        channels=channels,
        multipliers=tuple(width // channels for width in c.block_out_channels),
        num_res_blocks=c.layers_per_block,
        attention=attention,
        heads=same or 1,
        heads_up=same or 1,
        head_channels=None if same else c.attention_head_dim,
        dropout=c.dropout,
        cosine_first=c.flip_sin_to_cos,
        frequency_shift=c.freq_shift,
        scale_shift=c.resnet_time_scale_shift == "scale_shift",
        norm_eps=c.norm_eps,
        norm_groups=c.norm_num_groups,
        resample="same" if c.downsample_padding else "conv",
    )


def names(variant):
    """The names that a model's weights have in its folder, in a variant; two of an index, by diffusers' release."""
    stem, found = "diffusion_pytorch_model", []
    for kind in ("safetensors", "bin"):
        found += [f"{stem}{variant}.{kind}", f"{stem}.{kind}.index{variant}.json", f"{stem}.{kind}{variant}.index.json"]
    return found


def weights_in(folder):
    """The weights file, or the index of several, in a model's folder, or in a pipeline's. Raises InputError.

    EMA weights come before raw ones.
    """
    for place in (folder / name for name in PLACES):
        for name in (name for variant in VARIANTS for name in names(variant)):
            if (place / name).is_file() and (place / "config.json").is_file():
                return place / name
    message = f"{folder}: no diffusers model in this folder: no config.json with {' or '.join(WEIGHTS)}"
    raise InputError(message, "Sample.model_path")


def is_weights(path):
    """Whether a file is called as a diffusers model's weights, or as their index."""
    return path.name in {name for variant in VARIANTS for name in names(variant)}


def is_ema(path):
    """Whether weights are an average, by their folder's name or by what EMAModel has written into its config.json."""
    return path.parent.name == "unet_ema" or _object(path.with_name("config.json")).keys() >= EMA_STATE


def shards_of(index):
    """The files that an index lists, without what tensors are in them. Raises InputError."""
    listed = _object(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise InputError(f"{index}: no index of weights: it has no weight_map")
    files = sorted({str(name) for name in listed.values()})
    for name in files:
        if Path(name).name != name:
            raise InputError(f"{index}: lists {name!r}, which is not in its folder")
        if not index.with_name(name).is_file():
            raise InputError(f"{index}: lists {name}, which is missing")
    return [index.with_name(name) for name in files]


def is_hub_name(text):
    """Whether a text that is no path here looks like owner/name on the hub, and not like a misspelt file."""
    file = re.search(r"\.(ckpt|pth?|pkl|bin|safetensors|ya?ml)$", text)
    return bool(re.fullmatch(r"[\w-]+/[\w.-]+", text)) and not file and not Path(text).parent.exists()


def download(name):
    """The local folder of `owner/name` on the hub: weights, config.json, scheduler_config.json. Raises InputError."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(
            f"{name}: no such file; to take it from the hub, pip install huggingface_hub, or give a folder",
            "Sample.model_path",
        ) from None
    local = {"local_files_only": True} if published.offline() else {}  # only what is in the hub's cache
    beside = [*SCHEDULERS, *(f"{place}config.json" for place in PLACES)]
    try:
        folder = Path(snapshot_download(name, allow_patterns=beside, **local))
        for place in (place for place in PLACES if (folder / place / "config.json").is_file()):
            for weights in DOWNLOADS:
                files = [f"{place}{file}" for file in weights]
                folder = Path(snapshot_download(name, allow_patterns=[*beside, *files], **local))
                if (folder / files[0]).is_file():
                    return folder
    except Exception as error:  # each version of huggingface_hub and of what it builds on raises its own
        message = f"{name}: no such file, and huggingface_hub cannot get it: {first_line(error)}"
        raise InputError(message, "Sample.model_path") from None
    raise InputError(f"{name}: no weights are in {folder}")

"""Which pipelines of diffusers work with `MethodScheduler`: a table, made by running each with tiny random networks.

    git clone --depth 1 https://github.com/huggingface/diffusers /tmp/diffusers
    HF_HUB_OFFLINE=1 PYTHONPATH=.:/tmp/diffusers python tools/pipelines.py /tmp/diffusers

The networks and the inputs are those of diffusers' own tests. Their tokenizers, and T5, lie on the hub. Small ones
stand in for them here, so nothing is downloaded. A pipeline that fails so with its own scheduler, too, is named at the
end. Needs transformers, and what diffusers' tests import (accelerate, parameterized, peft).
"""

import argparse
import contextlib
import importlib
import inspect
import json
import re
import signal
import sys
import traceback
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from pndm import MethodScheduler
from pndm.config.files import save_json

METHODS = ("F-PNDM", "DPM-Solver++2M")
STEPS = 3  # does not divide 1000: times that are no whole numbers are met
SECONDS = 120  # for one run
FROM_NOISE = "cannot start where x is noise alone"  # what a method of several calls a step says of flow matching
TOKENIZERS = ("AutoTokenizer", "BertTokenizer", "CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast")


def tokenizer(*_, **__):
    """A tokenizer of a few words; all others are unknown to it."""
    words = {word: i for i, word in enumerate(("<s>", "<pad>", "</s>", "<unk>", "a", "of", "painting"))}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=77, **special)


def t5_config(*_, **__):
    return transformers.T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)


@contextlib.contextmanager
def offline():
    """Small models in place of those that diffusers' tests take from the hub."""
    with contextlib.ExitStack() as stack:
        stand_ins = dict.fromkeys(TOKENIZERS, tokenizer)
        stand_ins |= {"AutoConfig": t5_config, "T5EncoderModel": lambda *_, **__: t5_encoder()}
        for name, stand_in in stand_ins.items():
            stack.enter_context(mock.patch.object(getattr(transformers, name), "from_pretrained", stand_in))
        yield


def t5_encoder():
    torch.manual_seed(0)
    return transformers.T5EncoderModel(t5_config()).eval()


def cases(checkout, only):
    """(pipeline class, an object that makes its components and inputs), of diffusers' tests."""
    seen = set()
    for path in sorted((checkout / "tests" / "pipelines").glob("*/test_*.py")):
        if not re.search(only, path.as_posix()):
            continue
        try:
            module = importlib.import_module(".".join(path.relative_to(checkout).with_suffix("").parts))
        except Exception as error:  # a package that this machine lacks
            print(f"{path.name}: {first_line(error)}", file=sys.stderr)
            continue
        for kind in vars(module).values():
            able = inspect.isclass(kind) and kind.__module__ == module.__name__ and hasattr(kind, "get_dummy_inputs")
            pipeline = getattr(kind, "pipeline_class", None) if able else None
            if inspect.isclass(pipeline) and hasattr(kind, "get_dummy_components") and pipeline not in seen:
                seen.add(pipeline)
                yield pipeline, kind


def made(pipeline_class, kind):
    """A pipeline and its inputs."""
    case = kind()
    pipeline = pipeline_class(**case.get_dummy_components()).to("cpu")
    pipeline.set_progress_bar_config(disable=True)
    takes = inspect.signature(case.get_dummy_inputs).parameters
    inputs = case.get_dummy_inputs("cpu") if "device" in takes else case.get_dummy_inputs()
    if "num_inference_steps" in inspect.signature(pipeline.__call__).parameters:
        inputs["num_inference_steps"] = STEPS
    return pipeline, inputs


def check(output):
    """Raise ValueError unless all numbers in a pipeline's output are finite."""
    if isinstance(output, (list, tuple)):
        for part in output:
            check(part)
    elif output is not None and not np.isfinite(np.asarray(output, dtype=np.float64)).all():
        raise ValueError("the output is not finite")


def attempt(pipeline_class, kind, method=None):
    """Run a pipeline with its own scheduler, or a method: "works" or what stood in the way; its scheduler's name."""

    def late(*_):
        raise TimeoutError(f"no result in {SECONDS} seconds")

    name = ""
    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with offline(), torch.no_grad():
            pipeline, inputs = made(pipeline_class, kind)
            name = type(pipeline.scheduler).__name__
            if method:
                pipeline.scheduler = MethodScheduler.from_config(pipeline.scheduler.config, method=method)
            check(pipeline(**inputs)[0])
    except Exception as error:
        place = Path(traceback.extract_tb(error.__traceback__)[-1].filename).name
        return f"{first_line(error)} ({place})", name
    finally:
        signal.alarm(0)
    return "works", name


def first_line(error):
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"[:160]


def table(found):
    """The pipelines by what came out, in Markdown."""
    groups, left_out = {}, []
    for name, row in sorted(found.items()):
        own, *outcomes = row["outcomes"]
        if own == "works":
            said = ("refused" if FROM_NOISE in outcome else outcome.split(" (")[0] for outcome in outcomes)
            groups.setdefault(tuple(said), []).append(name.removesuffix("Wrapper").removesuffix("Pipeline"))
        else:
            left_out.append(name)
    lines = [f"| {' | '.join(METHODS)} | pipelines |", "|" + "---|" * (len(METHODS) + 1)]
    for outcomes, names in sorted(groups.items(), key=lambda group: -len(group[1])):
        lines.append(f"| {' | '.join(outcomes)} | {len(names)}: {', '.join(names)} |")
    lines += ["", f"Not run here with their own scheduler either ({len(left_out)}): {', '.join(left_out)}."]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a checkout of diffusers, also on PYTHONPATH")
    parser.add_argument("--only", default="", metavar="REGEX", help="only test files whose path matches it")
    parser.add_argument(
        "--to", type=Path, default=Path("temp/pipelines.json"), help="what was found; those in it are not run again"
    )
    args = parser.parse_args()
    if not (args.checkout / "tests" / "pipelines").is_dir():
        parser.error(f"{args.checkout}: no tests/pipelines in it; give a checkout of diffusers")
    found = json.loads(args.to.read_text()) if args.to.is_file() else {}
    for pipeline_class, kind in cases(args.checkout, args.only):
        if (name := pipeline_class.__name__) in found:
            continue
        own, scheduler = attempt(pipeline_class, kind)
        outcomes = [own]
        if own == "works":
            outcomes += [attempt(pipeline_class, kind, method)[0] for method in METHODS]
        found[name] = {"scheduler": scheduler, "outcomes": outcomes}
        print(name, scheduler, *outcomes, sep=" | ", file=sys.stderr, flush=True)
        args.to.parent.mkdir(parents=True, exist_ok=True)
        save_json(args.to, found)
    print(table(found))


if __name__ == "__main__":
    main()

"""The commands in README and docs/: those of the marked blocks run, and print what the pages show.

A comment above a block says what is to be done with it; a reader of the page does not see it.

    <!-- run -->                      run it as it stands
    <!-- run: --total_num 20 -->      run it with these flags, which make it smaller, after each of its commands
    <!-- run instead: COMMAND -->     run this in its place, or several: COMMAND && COMMAND
    <!-- run in PAGE -->              not here: that page runs its first command
    <!-- needs WHAT -->               not here: its flags, files and names are checked
    <!-- needs WHAT; says: TEXT -->   it ends with status 2, and with this in its message
    <!-- needs WHAT; with: --offline; says: TEXT -->   the same, with these flags
    <!-- output -->                   what the block above prints, numbers within their error; … stands for anything
    <!-- output in PAGE -->           the same as an output of that page

Each block with commands has such a comment. Each page runs in a checkout of its own, with an empty temp/, its blocks
from top to bottom. Of "says" the first command is meant.
"""

import argparse
import contextlib
import io
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import ROOT

from pndm import cli as front_door
from pndm.config.errors import InputError
from pndm.config.load import load_table

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = (
    "python",
    "python3",
    "printf",
    "make",
    "torchrun",
    "pip",
    "cp",
    "source",
    "tensorboard",
    "taskset",
    "sbatch",
    "pre-commit",
    "pndm",
)
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
# What depends on the machine and the hour: a number before one of these words.
UNSTEADY = re.compile(r"(?:images/s|s\b|ms\b|MB|GB|kB|MiB|seconds|minutes|h\b)")


@dataclass
class Block:
    """A block of a page: its lines, the line that it begins in, and the comment above it ("": none)."""

    page: Path
    line: int
    lines: list
    comment: str

    @property
    def text(self):
        return "\n".join(self.lines)

    @property
    def commands(self):
        """Its commands, each in one line, if it has any: of a block with a `$ `, the lines that begin with it."""
        whole = re.sub(r" *\\\n *", " ", self.text).splitlines()
        typed = [line.removeprefix("$ ") for line in whole if line.startswith("$ ")]
        whole = [re.sub(r"\s+# .*", "", line) for line in typed or whole if line.strip()]
        begins = [re.sub(r"^([A-Z_]+=\S+ +|/usr/bin/time -v +|\.venv/bin/)*", "", line).split()[:1] for line in whole]
        return whole if any(b and b[0] in PROGRAMS for b in begins) else []

    @property
    def is_python(self):
        return bool(re.match(r"(from \S+ import |import )", self.text)) and not self.commands


def blocks(page):
    """The `Block`s of a page: indented by four spaces, or between fences."""
    found, current, fence, comment, before = [], None, False, "", ""
    for number, line in enumerate([*page.read_text(encoding="utf-8").splitlines(), "end"], 1):
        if line.startswith("```"):
            fence = not fence
            if fence:
                current = Block(page, number + 1, [], comment)
            else:
                found.append(current)
                current, comment = None, ""
        elif fence:
            current.lines.append(line)
        elif line.startswith("    ") and (current or (not before.strip() and not before.startswith(("-", "*")))):
            current = current or Block(page, number, [], comment)
            current.lines.append(line[4:])
        elif line.strip():
            if current:
                found.append(current)
                current, comment = None, ""
            said = re.fullmatch(r"<!-- (.*) -->", line.strip())
            comment = said[1] if said else ""
        elif current:
            current.lines.append("")
        before = line
    return found


def found(page):
    """The blocks of a page that are commands, Python, or an output."""
    return [b for b in blocks(page) if b.commands or b.is_python or b.comment.startswith("output")]


def counted():
    """How many blocks of all pages are run, expected to fail with a message, compared, and checked."""
    kinds = dict.fromkeys(("run", "run for their message", "compared with their output", "checked"), 0)
    for block in (b for page in PAGES for b in found(page)):
        comment = block.comment
        if comment.startswith(("run in ", "output in ")):
            comment = ""
        kind = "run" if comment.startswith("run") else "run for their message" if "; says: " in comment else "checked"
        kinds["compared with their output" if comment.startswith("output") else kind] += 1
    return kinds


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of what a fresh clone has, without temp/, in which the test runs."""
    for name in ("config", "dataset", "docs", "model", "pndm", "runner", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("main.py", "Makefile", "README.md"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def run(command):
    """Run a command line: (exit status, stdout, stderr). main.py and tools/ run in this process."""
    words = shlex.split(command)
    while "=" in words[0]:
        words = words[1:]
    if words[0].endswith("python") and words[1].endswith(".py"):
        out, err = io.StringIO(), io.StringIO()
        argv, sys.argv = sys.argv, words[1:]
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                runpy.run_path(words[1], run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code or 0
        finally:
            sys.argv = argv
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return status, out.getvalue(), err.getvalue()
    if words[0] in ("source", "make"):  # the environment is there
        return 0, "", ""
    words[0] = sys.executable if words[0].endswith("python") else words[0]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=600)
    return ended.returncode, ended.stdout, ended.stderr


def check(block):
    """What can be said of a block without running it: flags, experiments, tools and targets that are not there."""
    if block.is_python:
        compile(block.text, f"{block.page.name}:{block.line}", "exec")
    return [f"{command}: {wrong}" for command in block.commands if (wrong := wrong_in(command))]


def wrong_in(command):
    """What is wrong in a command line, or ""."""
    if " && " in command:
        return "; ".join(filter(None, map(wrong_in, command.split(" && "))))
    words = shlex.split(command)
    scripts = [i for i, word in enumerate(words) if word.endswith(".py") and "/" not in word.removeprefix("tools/")]
    if words[0] == "make" and (target := words[1]) and f"\n{target}:" not in (ROOT / "Makefile").read_text():
        return f"no target {target}"
    if not scripts or words[scripts[0]].startswith("--"):
        return ""
    script = words[scripts[0]]
    if not (ROOT / script).is_file():
        return f"no file {script}"
    if "..." in words:
        return ""
    if script != "main.py":
        return wrong_for_tool(script, words[scripts[0] + 1 :])
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            args = front_door.parser().parse_intermixed_args(words[scripts[0] + 1 :])
            front_door.overrides_of(args)
            if args.table and not args.table.startswith("temp/"):
                load_table(args.table)
            if args.runner != "reproduce" and (not args.config or (ROOT / "config" / args.config).is_file()):
                front_door.experiment(args)
    except SystemExit:
        return said.getvalue()
    except InputError as error:
        return str(error)
    return ""


def wrong_for_tool(script, words):
    """What a tool's own parser says of the words after its name, or ""; the tool does nothing."""

    class Parsed(Exception):
        pass

    def parse(parser, *_):
        original(parser, words)
        raise Parsed

    original = argparse.ArgumentParser.parse_args
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except Parsed:
            return ""
        except SystemExit:
            return said.getvalue()
    return ""


def shared(block):
    """What is wrong in a block that another page runs, or prints: nothing if that page has it, too."""
    verb, _, name = block.comment.partition(" in ")
    others = [other for page in PAGES if page.name == name for other in found(page)]
    if verb == "output":
        same = any(other.comment == "output" and other.lines == block.lines for other in others)
    else:
        same = any(other.comment.startswith("run") and block.commands[0] in other.commands for other in others)
    return [] if same else [f"{block.text}\nis not in {name}"]


def differences(shown, printed):
    """The lines of an output in a page that are not among the printed ones, in order."""
    rest, missing = printed.splitlines(), []
    for line in filter(str.strip, shown):
        at = next((i for i, other in enumerate(rest) if alike(line.strip(), other.strip())), None)
        if at is None:
            missing.append(line)
        else:
            rest = rest[at + 1 :]
    return missing


def alike(shown, printed):
    """Whether a line says the same: equal words, numbers within three times the error that stands beside them."""
    before, *pieces = re.split(r"…|\.\.\.", shown)
    if pieces:
        return printed.startswith(before) and alike_at_end(pieces[-1], printed)
    words, others = NUMBER.split(shown), NUMBER.split(printed)
    if [" ".join(word.split()) for word in words] != [" ".join(word.split()) for word in others]:
        return False
    ours, theirs = ([float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (shown, printed))
    for i, (one, other, after) in enumerate(zip(ours, theirs, words[1:], strict=True)):
        error = ours[i + 1] if after.strip() == "±" else 0.0
        of_error = words[i].strip().endswith("±")
        if UNSTEADY.match(after.strip()):
            continue
        if abs(one - other) > max(3 * error, 0.5 * one * of_error, 1e-9 * one):
            return False
    return True


def alike_at_end(shown, printed):
    return not shown or printed.endswith(shown)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_run_and_print_what_it_shows(page, checkout):
    printed, wrong = "", []
    for block in found(page):
        place = f"{page.name}:{block.line}"
        verb, _, more = block.comment.partition(" ")
        if more.startswith("in "):
            wrong += [f"{place}: {text}" for text in shared(block) + check(block)]
        elif verb == "output":
            wrong += [f"{place}: not printed: {line}\nbut\n{printed}" for line in differences(block.lines, printed)]
        elif verb in ("run", "run:"):
            printed = ""
            if block.is_python:
                exec(compile(block.text, place, "exec"), {})
                continue
            if more.startswith("instead: "):
                commands = more.removeprefix("instead: ").split(" && ")
                wrong += [f"{place}: {text}" for text in check(block)]
            else:
                commands = [f"{command} {more}".strip() for command in block.commands]
            for command in commands:
                status, out, err = run(command)
                printed += out
                if status:
                    wrong.append(f"{place}: {command}: status {status}: {err}")
        elif failing := re.fullmatch(r"needs .*?(?:; with: (.*?))?; says: (.*)", block.comment):
            status, out, err = run(f"{block.commands[0]} {failing[1] or ''}")
            if status != 2 or failing[2] not in out + err:
                wrong.append(f"{place}: {block.commands[0]}: status {status}, {out}{err}")
        else:
            wrong += [f"{place}: {text}" for text in check(block)]
    assert not wrong, "\n".join(wrong)


def test_every_block_says_what_is_done_with_it(record_property):
    bare = [f"{b.page.name}:{b.line}" for page in PAGES for b in found(page) if not b.comment]
    assert not bare, ", ".join(bare)
    kinds = counted()
    record_property("blocks in README and docs", ", ".join(f"{n} {kind}" for kind, n in kinds.items()))
    assert kinds["run"] >= 10 and kinds["compared with their output"] >= 2


def test_the_commands_of_the_table_in_readme_are_right():
    """In `| I want to … | sample --method DDIM | page |` stands what follows `--runner`."""
    rows = re.findall(r"^\|[^|]*\| `([^`|]+)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    wrong = [f"{row}: {text}" for row in rows[1:] if (text := wrong_in(f"python main.py --runner {row}"))]
    assert len(rows) > 5 and not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("distance 0.0413 ± 0.0051", "distance 0.0411 ± 0.0053", True),
        ("distance 0.0413 ± 0.0051", "distance 0.0713 ± 0.0053", False),
        ("59 calls, 52.2 images/s", "59 calls, 114 images/s", True),
        ("59 calls, 52.2 images/s", "58 calls, 52.2 images/s", False),
        ("1,000 images by F-PNDM", "1,000 images by DDIM", False),
        ("sha256      …", "sha256      f457ef", True),
    ],
)
def test_outputs_are_compared_within_their_error(shown, printed, same):
    assert (not differences([shown], f"before\n{printed}\nafter")) == same


def test_a_block_that_another_page_runs_is_found_there_or_missed():
    for comment, line in (("run in README.md", "make sampel"), ("output in README.md", "1,000 images by PF")):
        assert shared(Block(ROOT / "docs" / "quickstart.md", 1, [line], comment))
    assert not shared(Block(ROOT / "docs" / "quickstart.md", 1, ["make sample"], "run in README.md"))


def test_a_wrong_flag_or_name_in_a_page_is_found():
    for command in (
        "main.py --methods_ DDIM",
        "main.py --method DDIN",
        "main.py --runner fid --eta 1",
        "main.py --runner reproduce --table fashion_serched",
        "tools/no.py",
        "tools/benchmark.py precizion",
        "tools/benchmark.py precision --imagez 9",
        "-V && python main.py --method DDIN",
    ):
        assert wrong_in(f"python {command}"), command
    assert not wrong_in("python tools/benchmark.py precision --images 9")
    assert wrong_in("make sampel") and not wrong_in("make sample")

"""Put a table's results into a page of docs/: its numbers between two marks, its figures in a folder beside it.

    python tools/results.py temp/reproduce/digits docs/results-digits.md

Run it when the table is finished, or has grown. Plots are kept as SVG, images as PNG, all cells in cells.csv, distances
to the exact flow in flow.json. Files that the table no longer has are deleted.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path

from pndm.config.files import aside

BEGIN, END = "<!-- numbers -->\n", "<!-- end of numbers -->\n"


def put(folder, page):
    """Write the results in `folder` between the marks of `page`. Raises ValueError where the page has no marks."""
    text = page.read_text(encoding="utf-8")
    if not text.find(BEGIN) < text.find(END) or BEGIN not in text:
        raise ValueError(f"{page}: {BEGIN.strip()} and {END.strip()} do not stand in it")
    found = (folder / "table.md").read_text(encoding="utf-8").split("\n", 2)
    if len(found) < 3:
        raise ValueError(f"{folder / 'table.md'}: cut short")
    numbers = found[2]
    beside = page.with_suffix("")
    beside.mkdir(exist_ok=True)
    shutil.copyfile(folder / "cells.csv", beside / "cells.csv")
    kept = re.findall(r"\(figures/([\w.]+)\)", numbers)
    for name in kept:
        shutil.copyfile(folder / "figures" / name, beside / name)
    if any(name.startswith("flow") for name in kept):
        shutil.copyfile(folder / "flow.json", beside / "flow.json")
        kept.append("flow.json")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    numbers = numbers.replace("(figures/", f"({beside.name}/")
    with aside(page) as file:
        file.write_text(f"{before}{BEGIN}\n{numbers}\n{END}{after}", encoding="utf-8")
    for old in [*beside.glob("*.svg"), *beside.glob("*.png"), *beside.glob("flow.json")]:
        if old.name not in kept:
            old.unlink()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the table")
    parser.add_argument("page", type=Path, help="Markdown file")
    args = parser.parse_args(argv)
    try:
        put(args.folder, args.page)
    except (OSError, ValueError) as error:
        print(f"results.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

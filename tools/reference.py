"""Make the reference of the public names from their docstrings: one page in HTML.

    python tools/reference.py build/reference

Needs pdoc (pip install .[docs]); `make docs` installs it. A warning of pdoc is an error.
"""

import argparse
import sys
import warnings
from pathlib import Path

import pndm


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the pages")
    folder = parser.parse_args(argv).folder
    try:
        import pdoc
    except ImportError:
        print("reference.py: pdoc is not installed: pip install .[docs]", file=sys.stderr)
        return 2
    for name in pndm.__all__:  # the package imports a name when it is first used; pdoc sees those that are there
        setattr(pndm, name, getattr(pndm, name))
    pdoc.render.configure(docformat="markdown", math=False, show_source=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pdoc.pdoc("pndm", output_directory=folder)
    except OSError as error:
        print(f"reference.py: {folder}: {error.strerror or error}", file=sys.stderr)
        return 2
    print(f"{folder / 'pndm.html'}: {len(pndm.__all__)} public names")
    return 0


if __name__ == "__main__":
    sys.exit(main())

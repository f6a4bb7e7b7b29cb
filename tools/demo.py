"""The page to look at methods: `python tools/demo.py`, the same as `pndm demo` (docs/demo.md).

python tools/demo.py --config digits.yml --methods DDIM,F-PNDM --calls 10,20
python tools/demo.py --export page.html
"""

import sys

from pndm.demo import main

if __name__ == "__main__":
    sys.exit(main())

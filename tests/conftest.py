"""What all tests share: the project's folder and the reference data."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data"
sys.path[:0] = [str(ROOT), str(DATA)]

"""What all tests share: the reference data, and the project's folder on the import path."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent / "data")]

"""Files that appear whole or not at all."""

import contextlib
import json
from pathlib import Path


@contextlib.contextmanager
def aside(path):
    """A path beside `path` to write to, renamed to `path` at the end; on an error it is removed.

    An OSError, such as of a full disk, is given the name of `path`.
    """
    path = Path(path)
    other = path.with_name(f".{path.name}.tmp")
    try:
        yield other
        other.replace(path)
    except BaseException as error:
        other.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


def load_json(path):
    """The dict in a JSON file. Raises OSError, and ValueError where there is none in it."""
    value = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


def save_json(path, value):
    with aside(path) as file:
        file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

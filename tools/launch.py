"""torchrun, ending without a traceback: a wrong value is then one line, not thirty.

    python tools/launch.py --nproc_per_node=2 main.py --runner sample --total_num 1000

All arguments are torchrun's. The exit status is that of the first process that failed.
"""

import logging
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run


def main(argv=None):
    """Run torchrun with the arguments `argv`; returns the exit status."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # failures are said below
    try:
        run(parse_args(argv))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:  # the process has said what was wrong
            return failure.exitcode
        print(f"launch.py: process {rank} was ended by {failure.signal_name()}", file=sys.stderr)
        return 128 - failure.exitcode
    except (ValueError, RuntimeError) as error:  # of torchrun's own flags
        print(f"launch.py: {str(error).partition(chr(10))[0]}", file=sys.stderr)
        return 2
    except SignalException as stop:
        return 128 + stop.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main())

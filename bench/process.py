"""One process of a `Pool`: `python -m nova_mp.bench.process FD`.

Not `multiprocessing`'s own children: those import the caller's main module again, so that a script
which calls `run_job` without a guard would start over in each of them, and one typed into an
interactive session could not run at all.
"""

from __future__ import annotations

import signal
import sys
from multiprocessing.connection import Connection


def main() -> None:
    """Take a function and its arguments from the pipe, and call it with the pipe."""
    # The terminal's Ctrl-C reaches the whole group; the parent decides when a client stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Connection(int(sys.argv[1]))
    try:
        function, arguments = pipe.recv()
        function(pipe, *arguments)
    except (BrokenPipeError, ConnectionResetError, EOFError):
        # The parent closed its end: it was stopped, and nobody wants the answer any more.
        if not pipe.poll():
            raise
        sys.exit(1)


if __name__ == "__main__":
    main()

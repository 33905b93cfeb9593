"""`python -m server.engine FD`: the engine's process, from its first instruction."""

import gc
import signal
import sys


def run() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        # A signal to the whole group must not end running requests: the API process drains first.
        signal.signal(number, signal.SIG_IGN)
    # What is imported stays: collections that look at all of it take a seventh of the time.
    gc.disable()
    from server.engine.process import main

    sys.exit(main(int(sys.argv[1])))


if __name__ == "__main__":
    run()

"""`python -m server.engine FD`: the engine's process, from its first instruction."""

import gc
import sys


def run() -> None:
    # What is imported stays: collections that look at all of it take a seventh of the time.
    gc.disable()
    from server.engine.process import main

    sys.exit(main(int(sys.argv[1])))


if __name__ == "__main__":
    run()

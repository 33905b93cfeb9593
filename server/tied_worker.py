"""`adapterd worker` that ends with the process that started it, however that ended.

Here: the watch over that process. Run as `python -m server.tied_worker PARENT worker …`: whoever
starts it may be killed, and must not leave workers behind that nobody knows of. Not here: working.
"""

import os
import signal
import sys
import threading
import time

from server.cli import main

LOOK_S = 0.5
GRACE_S = 60.0  # for a checkpoint


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_watch, args=(int(sys.argv[1]),), daemon=True).start()
    main(sys.argv[2:])

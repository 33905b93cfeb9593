"""What the worker adds to training: beside the same trl script by hand, and beside a server."""

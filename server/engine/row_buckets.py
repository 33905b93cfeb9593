"""How many rows a batch is rounded up to.

Torch's matmuls want it: oneDNN compiles one for each number of rows that it meets, about a
millisecond and some hundred kilobytes each. Few numbers of rows means that all of them are compiled
soon, and kept. The native library's take any number as it is.
"""

BUCKETS = (1, 2, 4, 8, 16)
STEPS = ((64, 8), (128, 16), (256, 32), (1 << 62, 64))  # up to so many rows, multiples of


def rows_for(count: int) -> int:
    """The least bucket that holds `count` rows; 0 for none. At most a quarter is added above 32."""
    if count == 0:
        return 0
    for bucket in BUCKETS:
        if count <= bucket:
            return bucket
    step = next(step for limit, step in STEPS if count <= limit)
    return -(-count // step) * step

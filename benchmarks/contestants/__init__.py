"""One module per contestant: `measure(job) -> Measurement`, run in a process of its own."""

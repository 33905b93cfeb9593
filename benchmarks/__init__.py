"""Side-by-side benchmarks, run from a checkout; their committed results are in results/."""

"""`python -m benchmarks`: what `make bench` runs."""

from benchmarks.mixed import app

if __name__ == "__main__":
    app()

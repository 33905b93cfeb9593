"""`python -m server` is `adapterd`, for a checkout that is not installed."""

from server.cli import main

main()

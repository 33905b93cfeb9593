"""Searches what suits some data: rank, targets, learning rate, dropout, weight decay."""

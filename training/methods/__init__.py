"""The ways to adapt a base, one family a module; trainable.py is where a job begins.

Nothing is imported here: fields.py, which a request is checked with, needs neither torch nor peft.
"""

"""A real data set from end to end: train with peft, push over HTTP, answer as peft does, score."""

"""Whether the advisor's verdicts hold: its short probes beside long runs, on data made for it."""

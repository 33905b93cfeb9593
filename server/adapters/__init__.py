"""The run-time side of adapters: host cache, slots, loader, one module per kind under methods/."""

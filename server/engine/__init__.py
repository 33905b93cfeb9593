"""The engine: continuous batching over one frozen base. No HTTP, no text, no catalog."""

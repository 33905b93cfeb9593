"""The training side: from a JSONL file to a published adapter, in processes of its own."""

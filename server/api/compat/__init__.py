"""Peers' dialects, a router each, over the same core as OpenAI's. docs/dialects.md lists them."""

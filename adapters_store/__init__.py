"""What an adapter is and where it rests: formats, validation, digests, blobs, catalog.

Knows nothing of the server: no HTTP, no engine, no device.
"""

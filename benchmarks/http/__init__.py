"""The server over HTTP: what it carries, how late its tokens come, and what HTTP costs."""

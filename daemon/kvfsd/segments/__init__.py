"""Segments on media: appending, pinning, scanning, collecting garbage."""

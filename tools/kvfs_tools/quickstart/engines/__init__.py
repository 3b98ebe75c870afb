"""Unmodified engines against a directory. The scripts here run in the engine's own environment, without kvfs."""

"""The write and read paths of blocks: stages, admission, scheduling, placement."""

"""Host half of kvfs: FUSE in front, commands on a queue pair behind, and the vocabulary both halves share."""

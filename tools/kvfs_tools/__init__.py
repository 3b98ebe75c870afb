"""Administration and inspection of pools: `kvfsctl` and what it is made of."""

"""A pool as a whole: its files, lock, media and tenants; made, opened, closed."""

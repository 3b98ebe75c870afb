"""DPU half of kvfs: admits, schedules, checks, seals and places blocks; owns catalog, keys and media."""

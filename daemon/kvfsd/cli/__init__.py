"""The commands `kvfs mount|umount|status` and `mount.kvfs`: parsing, checks, and the assembly of an embedded mount."""

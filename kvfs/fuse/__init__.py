"""The FUSE room: pyfuse3 handlers, handles, mounts and the one table that turns errors into errno."""

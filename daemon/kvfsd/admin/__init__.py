"""The admin socket and the register of running mounts."""

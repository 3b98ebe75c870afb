"""`python -m kvfsd`: the command `kvfsd`."""

from kvfsd.cli.daemon_app import main

if __name__ == "__main__":
    raise SystemExit(main())

"""Pure codecs of everything that lies on a medium; `docs/FORMAT.md` is normative."""

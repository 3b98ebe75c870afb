"""The sealed metadata log on the media, and the catalog rebuilt from it."""

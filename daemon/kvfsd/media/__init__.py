"""Media: where sealed records live, behind one small interface (:mod:`kvfsd.media.base`)."""

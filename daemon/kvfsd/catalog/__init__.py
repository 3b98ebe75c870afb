"""The catalog: an embedded transactional index of names, attributes, blocks, segments and tenants.

`Catalog` (catalog.py) is the way in; docs/adr/0001-catalog.md says why SQLite.
"""

from kvfsd.catalog.catalog import Catalog
from kvfsd.catalog.database import Hooks

__all__ = ["Catalog", "Hooks"]

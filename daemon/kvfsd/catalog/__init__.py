"""The catalog: an embedded transactional index of names, attributes, blocks, segments and tenants."""

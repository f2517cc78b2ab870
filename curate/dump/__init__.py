"""Dumps: images that one already has, in folders, archives or tables."""

"""Transport: four ZeroMQ channels between nodes, one envelope, and an in-memory twin."""

__meshnode__ = True

"""A peer-to-peer mesh for LM programs."""

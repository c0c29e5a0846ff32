"""Meshnode inside other libraries. Each is an extra; the core imports none of them."""

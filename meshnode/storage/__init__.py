"""Runs and their metrics, kept where a URL says."""

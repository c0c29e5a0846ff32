"""Programs a user would write; `make demo` runs one of them over a mesh."""

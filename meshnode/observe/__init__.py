"""What a node does, made visible: HTTP, metrics, logs, health. Reads the node; nothing here steers it."""

"""LivePad: a text that readers read while it is typed."""

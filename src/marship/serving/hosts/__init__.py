"""The servers that call a handler, each in a folder of its own."""

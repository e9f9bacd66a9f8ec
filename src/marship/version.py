"""The version of marship, which every part may name."""

VERSION = "0.1.0"

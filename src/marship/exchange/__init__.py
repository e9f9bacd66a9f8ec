"""HTTP exchanges as plain data, and what carries them; knows no engine."""

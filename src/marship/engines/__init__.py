"""What runs archives: each engine starts, registers, scales, describes, drains and stops."""

"""Request and response bodies: bytes to arrays and back, within stated sizes."""

"""What all workers of a server have counted, on one page for Prometheus."""

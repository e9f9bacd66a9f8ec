"""KServe v2 over gRPC: a gateway to the direct address, which validates, batches and responds.

open_inference.proto   the protocol; open_inference.binpb: its descriptors, by `make proto`
messages.py            the protocol's message classes
tensors.py             a request as a body of KServe v2 over HTTP, and a response back
upstream.py            pooled HTTP connections to the direct address's unix socket
statuses.py            statuses of gRPC for those of HTTP
server.py              the methods, and the process
"""

"""KServe v2 over gRPC: a gateway to the direct address, which validates, batches and responds.

open_inference.proto   the protocol; open_inference.binpb: its descriptors, by `make proto`
calls.py               a call as grpc hands it over
messages.py            the protocol's message classes
wire.py                its wire format, where objects for all fields would cost too much
requests.py            a request for a prediction, read within limits
turns.py               long work in the event loop, in turns
tensors.py             a request as a body of KServe v2 over HTTP, and a response back
shares.py              what calls share: places without a token, and memory
responses.py           responses of workers, within their room in memory
upstream.py            pooled HTTP connections to the direct address's unix socket
statuses.py            statuses of gRPC for those of HTTP
server.py              the methods, and the process
"""

"""A worker's own HTTP server: requests reach the model with no hop in between.

connection.py  one client's connection: within limits, responses in their order
reader.py      requests read from its bytes by httptools
exchange.py    one request and its response, as they stand on the wire
limits.py      what a client may take, and the refusal of what is more
routes.py      which paths there are, and what each of them answers
lane.py        requests on their way through the model: what has arrived is the next batch
tokens.py      who may ask: the tokens in the server's key file
worker.py      the server beside a host's own worker loop, connected to the acceptor
acceptor.py    one address for all models: finds each connection its worker
seats.py       the workers that the acceptor knows
sockets.py     connected sockets passed on to another process
relay.py       connections to models whose workers do not speak HTTP
"""

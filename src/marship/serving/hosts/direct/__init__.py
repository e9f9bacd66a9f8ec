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
relays.py      requests for models whose workers do not speak HTTP, by relay.py
split.py       requests for a model on trial, which go to one version or to both
trial.py       a trial: who takes part, for how long, and what came of it
"""

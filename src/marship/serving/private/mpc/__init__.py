"""Three parties compute on shares: no one of them learns inputs, outputs or weights. Experimental.

Replicated secret sharing modulo 2^64 (Araki, Furukawa, Lindell, Nof, Ohara 2016; ABY3, Mohassel and
Rindal 2018): x = x0 + x1 + x2, and party i holds x_i and x_(i+1). Every message of the protocol
goes from party i to party i - 1. Secure if the parties follow the protocol and no two of them
combine what they hold. From the ground up:

    ring.py      fixed point numbers, and matrices of 64-bit words by ONNX Runtime
    streams.py   random words that two parties draw alike
    shares.py    dealing shares of values, and joining them
    protocol.py  what a party does for a product, a rescaling, a comparison
    program.py   a model as steps of the protocol, without weights
    model.py     a party's shares of a model, and running its steps
    identity.py  a party's private key and public card
    boxes.py     requests and answers, sealed to one party or to the client
    frames.py    messages between parties
    links.py     mutual TLS between parties, and the greeting
    rehearsal.py all three parties in one process, to try a model
    party.py     a batch, as the leading party and the two others see it
    leader.py    party 0's connection to the others, kept and made again
    files.py     a party's files, opened
    follower.py  parties 1 and 2, which wait for a leader
    handler.py   party 0 as a handler in a worker
"""

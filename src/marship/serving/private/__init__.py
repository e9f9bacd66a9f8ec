"""Encrypted inference in a worker: CKKS by SEAL (`tenseal.sealapi`), and nothing decrypted.

ckks.py      rings, keys and ciphertexts: the one place that calls the library
packing.py    where a vector's values lie in a ciphertext, and matrices as its diagonals
plan.py      a model as affine maps and powers, and the ring that it fits
evaluate.py  a plan on one ciphertext
keys.py      a client's evaluation keys as one stream of bytes, cut in pieces
keystore.py  evaluation keys of clients on disk, by digest
message.py    the bytes of requests and responses
handler.py   EncryptedHandler
mpc/         three parties, none of which learns inputs, outputs or weights
"""

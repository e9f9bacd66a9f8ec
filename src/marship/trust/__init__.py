"""Signed archives: authenticity and integrity of a `.mar`.

    keys.py       Ed25519 keys as files
    contents.py   strict reading of an archive, unambiguous to all zip readers
    extract.py    extracting files of an archive, verified by their digests
    statement.py  the signed statement: name, version, and a digest of each file
    envelope.py   the signature file: a DSSE envelope
    signature.py  signing an archive with a detached signature
    openssf.py    signatures of OpenSSF Model Signing, where model-signing is installed
    ownership.py  checks that other users cannot change files
    policy.py     the trust folder, and verifying an archive with its keys
    download.py   downloading archives, verified before they are stored
    vault.py      the server's own copies of verified archives

All of it runs outside the archive, before anything in it is unpacked or run.
"""

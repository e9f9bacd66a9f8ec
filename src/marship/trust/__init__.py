"""Signed archives: who made a `.mar`, and that it is still what they made.

    keys.py       Ed25519 keys as files
    contents.py   what an archive holds, read so strictly that every reader sees the same
    extract.py    single files of an archive, held against that reading
    statement.py  what is signed of it: name, version, and a digest of each file
    envelope.py   the signed bytes and their signature as a file: DSSE
    signature.py  signing an archive; the signature lies beside it
    openssf.py    signatures of OpenSSF Model Signing, where model-signing is installed
    ownership.py  files that nobody else can change
    policy.py     the trust folder, and holding an archive against it
    download.py   archives from elsewhere, held against it before they lie in the store
    vault.py      the server's own copies of verified archives

All of it runs outside the archive, before anything in it is unpacked or run.
"""

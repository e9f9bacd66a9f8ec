"""TorchServe as `marship.engines.torchserve.server` and `marship.client.clients` see it.

    home.py        the private folder of one server, and whether it runs
    java.py        a Java that is new enough
    properties.py  the file format of its settings
    config.py      its settings: checked, completed, ports chosen
    production.py  what must hold where strangers' requests arrive
    environment.py what Java and its workers see of the environment
    sockets.py     unix sockets in place of ports
    access.py      addresses and tokens
    calls.py       one HTTP exchange as plain data, and its errors as ours
    transports.py  exchanges by blocking calls; async_transport.py by aiohttp
    connections.py the blocking client's: HTTP with a deadline for a whole exchange
    peers.py       whether a connection ends at the server that is meant
    turns.py       waiting for a lock that another process holds
    status.py      what the server says of its models, and waiting for their workers
    models.py      registering, scaling and asking models, as exchanges one after the other
    store.py       archives: there, whole, and signed where that is asked for
    workerlog.py   why a worker died, from its log

Server and client never import each other: they meet in the home folder.
"""

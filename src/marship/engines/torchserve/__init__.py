"""TorchServe: its server and its management, as seen from outside of the process.

    server.py      start, supervise and stop a server
    java.py        finding a supported Java runtime, and its command line
    properties.py  the file format of the settings
    config.py      settings: validated, completed, ports chosen
    production.py  the checks of --profile production
    environment.py environment variables of Java and the workers
    access.py      addresses and tokens
    problems.py    what TorchServe's error responses mean
    peers.py       whether a connection is to the intended server
    locks.py       waiting for a lock that another process holds
    engine.py      the engine interface, on top of the modules below
    models.py      registering, scaling and calling models, as flows
    registration.py, versions.py, draining.py    the steps of those flows
    status.py      the status of models, and waiting for their workers
    store.py       archives in the model store: validity and signatures
    workerlog.py   the cause of a worker's crash, from its log
    worker_script.py  the script that starts a worker

Server and client never import each other: they share the home folder, `engines.home`.
"""

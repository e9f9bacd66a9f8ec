"""Ray Serve 2.60: an archive on many machines, with the direct host's workers in its replicas.

engine.py       the engine's interface over a cluster
settings.py     how it is started
head.py         a cluster of one's own: its first node, on this machine
cluster.py      connecting to a cluster, and what Serve is asked there
access.py       addresses and tokens of a home folder
archives.py     archives by digest: where they lie, and how nodes get them
node.py         an archive on a node: fetched, verified, extracted once
plan.py         a version's deployment: batches, limits, resources, autoscaling
models.py       models, as flows that clients run
registration.py  checking an archive, and starting its replicas
table.py        models, versions and applications, as the front and clients read them
keeper.py       a cluster's archives and token, in an actor
front.py        the application that takes requests and passes them to versions
binding.py      where replicas listen for each other
hosted.py       a version on a node: a worker process, and the acceptor in front of it
replica.py      what Serve asks of it
scratch.py      folders of processes, removed by the next one if they were killed
worker.py       a worker process, started and watched
worker_process.py  loads an extracted archive and serves it, with the archive's own marship
line.py         HTTP over a unix socket
problems.py     errors on their way through Ray
"""

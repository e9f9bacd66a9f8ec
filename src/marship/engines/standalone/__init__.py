"""A host without an engine and without Java: archives that stay what they are, as in a container.

settings.py       how it is started
archives.py       which archives, verified and extracted
host.py           the process: acceptor, workers, signals
workers.py        its worker processes: started, watched, started again
worker_script.py  what such a process runs before the archive's own code
figures.py        what workers count, as a page for Prometheus
page.py           the server of that page
tokens.py         the token, from a file that others renew
"""

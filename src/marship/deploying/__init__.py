"""Containers and Kubernetes: what is written for them; nothing here talks to a cluster.

settings.py   flags of `marship image` and `marship manifests`
image.py      a Containerfile, and beside it all that it copies
packages.py   which Python packages an archive needs, in the versions of this installation
manifests.py  Kubernetes' and KServe's objects for archives
rules.py      what Kubernetes would refuse, refused here
templates/    the Containerfile and the objects, as they stand in a file of their own
template.py   fills them in
"""

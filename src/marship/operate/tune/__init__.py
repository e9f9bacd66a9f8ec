"""`marship tune`: the settings of an archive that serve best on this machine, found by measuring.

settings.py   what is asked for
candidate.py  one way to serve the archive, and the grid of all
variants.py   archives of candidates: other settings, and other variants of a run folder
served.py     a candidate on a server of its own
hosted.py     the process of such a server without an engine
load.py       requests at a rate, or by clients that wait for their responses
answers.py    whether responses are those of the shipped settings
bench.py      a candidate, packed, served, asked and loaded
figures.py    what was measured of a candidate, and which of two is better
machine.py    a model of the machine: what settings that were not measured would give
search.py     which candidate is measured next
turns.py      finalists beside the shipped settings
record.py     all measurements in a file, so that a run can be resumed
verdict.py    what came of it
report.py     the table and the picture
step.py       all of it
"""

"""Typed clients of one model, written as a package of its own: dataclasses, NumPy in and out.

package.py     writes the package
classes.py     JSON Schemas as Python types and dataclasses
methods.py     what a model is asked by, for each kind of model
transport.py   HTTP and values; with the next two copied into each package, needs NumPy alone
tensors.py     tensors as raw bytes
retries.py     when a request is sent again
"""

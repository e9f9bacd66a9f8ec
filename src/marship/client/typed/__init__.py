"""Typed clients of one model, written as a package of its own: dataclasses, NumPy in and out.

package.py     writes the package
classes.py     JSON Schemas as Python types and dataclasses
methods.py     what a model is asked by, for each kind of model
transport.py   HTTP, tensors and values: copied into each package, and needs NumPy alone
"""

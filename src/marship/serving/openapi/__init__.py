"""OpenAPI documents: what models take and give, as their contracts and handlers say it.

interface.py   what one model takes and gives: a handler's own declaration
schemas.py     JSON Schemas, of tensors and of what handlers declare
tensors.py     the interface of a model whose requests and responses are tensors
refusals.py    the statuses and codes of errors
validity.py    checks what handlers declare
document.py    the document of all models of a server

Sources: OpenAPI 3.1.0; JSON Schema, draft 2020-12.
"""

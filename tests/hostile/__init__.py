"""Hostile requests: everything that may come in place of a prediction, and that it is refused by itself.

`subject` writes valid requests and splices bytes into them; `broken_documents`, `wrong_requests`, `wrong_arrays` and
`wrong_headers` are the table of what must be answered how; `oracle` decides the same for any bytes without the code
under test, and `mutations` draws them.
"""

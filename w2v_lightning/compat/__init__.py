"""Private names of other libraries, in one place: each with the reason why no public name serves.

`tests/test_compat.py` names each of them and fails when one is renamed or changes its signature; it also fails where
another module of this package uses a private name of a library. Methods that this package overrides, and that a library
would silently stop calling, are listed there too.
"""

"""Bytes that were made to harm, for every reader of files: nothing may come of them but an error of memcore's.

Each module has one target. ``make fuzz`` runs one with atheris, which looks for bytes that lead to other branches;
``tests/reliability/test_fuzz.py`` runs all of them on bytes that are changed by chance.
"""

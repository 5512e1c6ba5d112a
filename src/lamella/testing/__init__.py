"""Suites and strategies for those who add a format, an engine or a decoder.

A new reader or writer proves itself by one subclass::

    from lamella.testing.io import FormatContract

    class TestMyFormat(FormatContract):
        format_id = "my-format"
        suffix = ".my"
        dtypes = ("uint8", "float32")

Needs pytest and hypothesis, which the base install does not bring.
"""

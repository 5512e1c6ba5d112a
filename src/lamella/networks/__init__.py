"""Networks, built by id and plain arguments; torch is imported only when one is built."""

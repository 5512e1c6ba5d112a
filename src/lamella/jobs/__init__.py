"""A durable queue: named callables on documents, run by processes or a cluster; no science."""

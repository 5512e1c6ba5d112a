"""The server: uploads, jobs, events and results over HTTP."""

"""The client of a server: light, and the same flow with and without asyncio."""

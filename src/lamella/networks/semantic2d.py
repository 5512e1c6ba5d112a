"""2-D networks of the registry."""

from lamella.networks.registry import NetworkDescriptor

NETWORKS: tuple[NetworkDescriptor, ...] = ()

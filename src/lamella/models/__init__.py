"""Model folders: a card, weights and an OpenVINO graph of the same numbers, and where they lie."""

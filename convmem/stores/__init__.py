"""Where conversations are kept: the contract in `base`, one module for each kind of store."""

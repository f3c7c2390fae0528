"""The clauses of the storage contract, by subject. Each test is one promise of `convmem.stores.base`."""

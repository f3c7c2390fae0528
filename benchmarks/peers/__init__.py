"""Other histories, each through its public API and at its best: objects are kept where they may be, windows are used."""

"""What dies, and what is left then: a recorder of histories, their checker, a proxy that breaks connections, and the fault tests."""

"""What executes a graph: one vendor a module, imported only when chosen."""

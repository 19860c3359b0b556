"""What people look at; reads a work directory, never a live experiment."""

"""What goes when room is needed: policies (pure), and the evictor that carries out what they decide."""

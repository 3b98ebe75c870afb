"""Keys from the KEK down, and the sealing of records under them."""

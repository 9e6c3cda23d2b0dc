"""Finding a ticket: gates, the early bird, the draw."""

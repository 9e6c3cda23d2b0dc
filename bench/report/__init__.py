"""Tables, plots and bounds of what was measured."""

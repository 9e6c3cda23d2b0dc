"""Studies in files, which `earlybert study` runs, and the data that they take."""

"""What several tests import."""

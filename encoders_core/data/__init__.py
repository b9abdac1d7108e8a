"""Small tables that belong to trained weights."""

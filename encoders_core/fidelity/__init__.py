"""How far a saving is from the plain encoder on every frame, and what it saves: metrics, policies, and the run that compares them."""

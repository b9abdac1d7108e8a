"""The processes and commands of camvec: the only place where frames meet models."""

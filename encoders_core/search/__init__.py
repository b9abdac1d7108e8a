"""What multimodal search is made of: the vector index, the alignment that is fitted, the bridge over class names."""

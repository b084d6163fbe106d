"""``blip bench``: what the mesh costs, measured against something that everybody has."""

"""How pictures are enlarged: tile by tile, and put together without seams."""

"""Features of images, their statistics, and the distances between them."""

"""Records, images and conversations, and the input pipeline that batches them."""

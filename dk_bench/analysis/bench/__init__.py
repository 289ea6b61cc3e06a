"""Times of operators, of training steps and of data loaders."""

"""A research template for multi-task learning in which the loss combiner is a config group."""

"""The data set and the weighting of this project."""

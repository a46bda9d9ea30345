"""What the repository needs to make its documentation: never part of a distribution."""

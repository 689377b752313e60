"""Scripts that train and predict with other libraries, as their users would write them, and their comparison."""

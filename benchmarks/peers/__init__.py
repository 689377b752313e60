"""The same training and prediction with other libraries, each as a script that its users would write."""

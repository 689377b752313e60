"""Classification of image files, its page and server, and exports."""

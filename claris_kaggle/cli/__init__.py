"""The command line `claris`: one module per command, and `main`, which runs them."""

"""The command `claris`: one module a command, `main` to run them."""

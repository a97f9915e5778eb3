"""The `cas` command. `main` has the entry point; each other file a group of commands or what they share."""

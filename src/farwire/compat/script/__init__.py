"""The scripts of execnet under their old names: ``python -m farwire.compat.script.socketserver`` and so on."""

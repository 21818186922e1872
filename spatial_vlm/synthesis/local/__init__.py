"""A server on this machine that replaces a remote teacher."""

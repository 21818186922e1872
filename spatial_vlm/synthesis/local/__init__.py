"""A server on this machine that answers in place of a remote teacher."""

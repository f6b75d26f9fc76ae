"""Run what a command asks for, from raw recordings to pages. May use Ray."""

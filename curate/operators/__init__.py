"""One file is one operator; the file's name is the operator's."""

"""The pool in a local web page: what is shown is computed here, what shows it lies in `page/`."""

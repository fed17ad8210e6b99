"""`winnow report`: one HTML file that shows a pool, a selection of it, and the datasets and runs made of them."""

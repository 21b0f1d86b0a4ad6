"""Tables, charts and the page from the numbers of finished runs."""

"""Parts of the site that are made from the program: what it can be told, what it answers, what it counts."""

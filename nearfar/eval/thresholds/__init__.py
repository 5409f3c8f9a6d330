"""Where to cut a similarity score, and how far one cut holds for every class."""

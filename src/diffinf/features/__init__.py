"""Identity and image embedders behind one interface."""
